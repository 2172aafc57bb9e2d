//! Keeps secrets out of what history keeps.

use super::template::percent_encode;

/// Shorter values are not searched for: they would blot out ordinary text.
const LENGTH_MIN: usize = 4;

/// Replaces known secrets, in each form in which they are sent, by `***`.
#[derive(Clone, Default)]
pub struct Redactor {
    /// Longest first, so that a secret that contains another goes whole.
    needles: Vec<String>,
}

impl Redactor {
    #[must_use]
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Redactor {
        let mut redactor = Redactor::default();
        for secret in secrets {
            redactor.add(&secret);
        }
        redactor
    }

    pub fn add(&mut self, secret: &str) {
        if secret.len() < LENGTH_MIN {
            return;
        }
        let as_json = serde_json::Value::from(secret).to_string();
        let form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let as_json = as_json[1..as_json.len() - 1].to_owned();
        self.needles.extend([secret.to_owned(), percent_encode(secret), form, as_json]);
        self.needles.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.needles.dedup();
    }

    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for needle in self.needles.iter().filter(|n| text.contains(n.as_str())) {
            out = out.replace(needle, "***");
        }
        out
    }

    /// How far beyond a limit one must read so that no secret is cut in two by it.
    #[must_use]
    pub fn longest_bytes(&self) -> usize {
        self.needles.first().map_or(0, String::len)
    }

    /// The first `limit` bytes of `bytes` as text, without secrets.
    #[must_use]
    pub fn clean_bytes(&self, bytes: &[u8], limit: usize) -> String {
        let mut text = self.clean(&String::from_utf8_lossy(bytes));
        shorten(&mut text, limit);
        text
    }
}

/// Cuts at `limit` bytes, or just before a character that would be cut in two.
pub fn shorten(text: &mut String, limit: usize) {
    if text.len() > limit {
        let cut = (0..=limit).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(cut.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_goes_in_every_form_it_is_sent_in() {
        let r = Redactor::new(["p&ss \"w\"".to_owned(), "p&ss".to_owned()]);
        assert_eq!(r.clean("a p&ss \"w\" b"), "a *** b");
        assert_eq!(r.clean("?k=p%26ss%20%22w%22"), "?k=***");
        assert_eq!(r.clean("k=p%26ss+%22w%22&x"), "k=***&x");
        assert_eq!(r.clean(r#"{"k":"p&ss \"w\""}"#), r#"{"k":"***"}"#);
        assert_eq!(r.clean("p&ss"), "***");
    }

    #[test]
    fn a_secret_across_the_limit_is_not_kept_in_part() {
        let r = Redactor::new(["0123456789".to_owned()]);
        assert_eq!(r.clean_bytes(b"abcd0123456789", 8), "abcd***");
    }

    #[test]
    fn the_cut_is_between_characters() {
        assert_eq!(Redactor::default().clean_bytes("aä".as_bytes(), 2), "a");
    }
}
