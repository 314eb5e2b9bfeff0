//! What an action's pointers lead to, found while the payload is read.

use super::actions::{POINTERS_MAX, Pointer};
use super::scan::{Members, NotJson};

/// For each pointer the raw value that it leads to, if one is there.
#[derive(Clone, Copy, Default)]
pub(super) struct Found<'a>([Option<&'a str>; POINTERS_MAX]);

impl<'a> Found<'a> {
    /// In the order of the pointers.
    pub(super) fn values(self) -> impl Iterator<Item = Option<&'a str>> {
        self.0.into_iter()
    }

    /// Goes through the members of a payload and notes what `pointers` lead to.
    pub(super) fn look(&mut self, pointers: &[Pointer], payload: &mut Members<'a>) -> Result<(), NotJson> {
        let all = pointers.iter().enumerate().fold(0, |set, (i, _)| set | 1 << i);
        self.walk(pointers, all, 0, payload)
    }

    /// Looks for the pointers in `set`, a bit for each, all of which lead to `members`, at depth `depth` of their paths.
    fn walk(&mut self, pointers: &[Pointer], set: u16, depth: usize, members: &mut Members<'a>) -> Result<(), NotJson> {
        while let Some(name) = members.name()? {
            let (mut here, mut deeper) = (0_u16, 0_u16);
            for (i, (_, path)) in pointers.iter().enumerate().filter(|(i, _)| set & 1 << i != 0) {
                if path.get(depth).is_some_and(|&part| name.text.as_deref() == Some(part)) {
                    *if depth + 1 == path.len() { &mut here } else { &mut deeper } |= 1 << i;
                }
            }
            // A member that stands twice: the last one counts, whole, as it does for most parsers.
            let mut before = deeper;
            while before != 0 {
                self.0[before.trailing_zeros() as usize] = None;
                before &= before - 1;
            }
            let value = match deeper {
                0 => members.value()?,
                deeper => members.object(|inner| self.walk(pointers, deeper, depth + 1, inner))?,
            };
            while here != 0 {
                self.0[here.trailing_zeros() as usize] = Some(value);
                here &= here - 1;
            }
        }
        Ok(())
    }
}
