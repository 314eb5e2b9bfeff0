//! A page of HTML: its texts, which are escaped, and the policy that allows its own style and script and nothing else.

use std::sync::LazyLock;

use hyper::header::HeaderValue;
use sha2::{Digest as _, Sha256};

/// A page whose policy is computed once.
pub struct Template {
    pub text: &'static str,
    pub policy: LazyLock<HeaderValue>,
}

impl Template {
    /// The page with texts for its `{{names}}`, which are escaped.
    pub fn with(&self, texts: &[(&str, &str)]) -> String {
        texts.iter().fold(self.text.to_owned(), |page, (name, text)| page.replace(&format!("{{{{{name}}}}}"), text))
    }
}

/// The policy of a page: its own style and script, each by its digest, and what `more` allows.
pub fn policy(page: &str, more: &str) -> HeaderValue {
    let digest = |tag: &str| {
        let (_, rest) = page.split_once(&format!("<{tag}>")).expect("the page has one");
        let (text, _) = rest.split_once(&format!("</{tag}>")).expect("and it ends");
        format!("'sha256-{}'", base64(&Sha256::digest(text)))
    };
    let (script, style) = (digest("script"), digest("style"));
    let policy = format!(
        "default-src 'none'; script-src {script}; style-src {style}; base-uri 'none'; form-action 'none'; {more}"
    );
    HeaderValue::from_str(&policy).expect("visible ASCII")
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = (0..3).fold(0_u32, |bits, n| bits << 8 | u32::from(group.get(n).copied().unwrap_or(0)));
        let digit = |n: usize| char::from(DIGITS[(bits >> (18 - 6 * n)) as usize & 63]);
        (0..4).map(|n| if n > group.len() { '=' } else { digit(n) }).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// A text as HTML has it, within elements and within attributes.
pub fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_as_rfc_4648_has_it() {
        let written = |text: &str| base64(text.as_bytes());
        for (text, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(written(text), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn the_policy_names_the_one_script_and_the_one_style_of_a_page() {
        let policy = policy("<style>b</style><script>a</script>", "frame-ancestors 'none'");
        let expected = "default-src 'none'; script-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='; \
                        style-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='; base-uri 'none'; form-action 'none'; \
                        frame-ancestors 'none'";
        assert_eq!(policy.to_str().ok(), Some(expected));
        for page in [include_str!("install.html"), include_str!("app.html")] {
            assert_eq!((page.matches("<script").count(), page.matches("<style").count()), (1, 1));
            let markup =
                page.split_once("</style>").and_then(|(_, rest)| rest.split_once("<script>")).expect("a body").0;
            for blocked in ["src=", "style=", " on", "href=", "<form"] {
                assert!(!markup.contains(blocked), "{blocked} in {markup}");
            }
        }
    }

    #[test]
    fn texts_cannot_become_markup() {
        let escaped = escaped("<a href=\"x\" title='y'>&amp;</a>");
        assert_eq!(escaped, "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;amp;&lt;/a&gt;");
    }
}
