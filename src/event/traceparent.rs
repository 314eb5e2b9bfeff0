//! The `traceparent` header of W3C Trace Context: passed on where it names a trace, in the version that the relay knows.

/// `<version>-<trace id>-<parent id>-<flags>`: what to pass on of it, which is always version 00.
///
/// A later version is read by its first four fields, as the specification asks, and of its flags only `sampled` is kept. Ids of
/// zeros alone name nothing.
pub fn traceparent(header: &str) -> Option<String> {
    let mut fields = header.split('-');
    let [version, trace, parent, flags] =
        [2, 32, 16, 2].map(|digits| fields.next().filter(|field| is_hex(field, digits)));
    let (version, trace, parent, flags) = (version?, trace?, parent?, flags?);
    let is_later = version != "00";
    if version == "ff" || (!is_later && fields.next().is_some()) || [trace, parent].iter().any(|id| is_zero(id)) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
    let flags = if is_later { format!("0{sampled}") } else { flags.to_owned() };
    Some(format!("00-{trace}-{parent}-{flags}"))
}

fn is_hex(field: &str, digits: usize) -> bool {
    field.len() == digits && field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_zero(id: &str) -> bool {
    id.bytes().all(|b| b == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trace_is_passed_on() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{parent}-01");
        assert_eq!(traceparent(&good).as_ref(), Some(&good));
        assert_eq!(traceparent(&format!("cc-{trace}-{parent}-03-what-the-future-brings")), Some(good.clone()));
        assert_eq!(traceparent(&format!("01-{trace}-{parent}-02")), Some(format!("00-{trace}-{parent}-00")));
        for bad in [
            "00-4bf9-00f0-01",
            "zz",
            "",
            &good.to_uppercase(),
            &format!("{good}-x"),
            &format!("{good}x"),
            &good.replace("00-4", "ff-4"),
            &good.replace(trace, &"0".repeat(32)),
            &good.replace(parent, &"0".repeat(16)),
            &format!("cc-{trace}-{parent}"),
        ] {
            assert_eq!(traceparent(bad), None, "{bad}");
        }
    }
}
