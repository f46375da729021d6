//! Reading the keys of a JSON object and collecting what is wrong with them.

use serde_json::{Map, Value};

use super::Problem;

/// Largest size of anything.
pub(super) const MAX_SIZE: u64 = (1 << 31) - 1;

/// Reads the keys of one object. A method that fails notes the problem and returns `None`.
pub(super) struct Reader<'a, 'p> {
    pub map: &'a Map<String, Value>,
    pub prefix: &'a str,
    pub problems: &'p mut Vec<Problem>,
}

impl<'a> Reader<'a, '_> {
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem { key: format!("{}{key}", self.prefix), message: message.into() });
    }

    /// Notes what a key holds and what it should hold.
    pub fn wrong(&mut self, key: &str, expected: &str) {
        let message = match self.map.get(key) {
            None => format!("is missing; expected {expected}"),
            Some(value) => format!("is {}; expected {expected}", shown(value)),
        };
        self.problem(key, message);
    }

    /// `None` if the key is absent or null, else what `read` makes of it.
    pub fn optional<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.map.get(key).is_none_or(Value::is_null) { None } else { Some(read(self)) }
    }

    /// Reads an object inside this one.
    pub fn inside<T>(&mut self, key: &str, read: impl FnOnce(&mut Reader) -> Option<T>) -> Option<T> {
        let Some(Value::Object(map)) = self.map.get(key) else {
            self.wrong(key, "an object");
            return None;
        };
        let prefix = format!("{}{key}.", self.prefix);
        read(&mut Reader { map, prefix: &prefix, problems: self.problems })
    }

    pub fn count(&mut self, key: &str, least: u64, most: u64) -> Option<usize> {
        let found = self.map.get(key).and_then(whole).filter(|n| (least..=most).contains(n));
        if found.is_none() {
            self.wrong(key, &format!("a whole number from {least} to {most}"));
        }
        found.map(|n| n as usize)
    }

    pub fn size(&mut self, key: &str) -> Option<usize> {
        self.count(key, 1, MAX_SIZE)
    }

    pub fn count_or(&mut self, key: &str, default: usize, least: u64, most: u64) -> Option<usize> {
        self.optional(key, |r| r.count(key, least, most)).unwrap_or(Some(default))
    }

    pub fn real(&mut self, key: &str, expected: &str, ok: fn(f64) -> bool) -> Option<f64> {
        let found = self.map.get(key).and_then(Value::as_f64).filter(|&x| x.is_finite() && ok(x));
        if found.is_none() {
            self.wrong(key, expected);
        }
        found
    }

    pub fn real_or(&mut self, key: &str, default: f64, expected: &str, ok: fn(f64) -> bool) -> Option<f64> {
        self.optional(key, |r| r.real(key, expected, ok)).unwrap_or(Some(default))
    }

    pub fn flag_or(&mut self, key: &str, default: bool) -> Option<bool> {
        let read = |r: &mut Self| {
            let found = r.map.get(key).and_then(Value::as_bool);
            if found.is_none() {
                r.wrong(key, "true or false");
            }
            found
        };
        self.optional(key, read).unwrap_or(Some(default))
    }

    pub fn word<T: Copy>(&mut self, key: &str, allowed: &[(T, &str)]) -> Option<T> {
        let found = self.map.get(key).and_then(Value::as_str);
        let meant = allowed.iter().find(|(_, word)| Some(*word) == found);
        if meant.is_none() {
            let words: Vec<_> = allowed.iter().map(|(_, word)| format!("\"{word}\"")).collect();
            self.wrong(key, &words.join(" or "));
        }
        meant.map(|(value, _)| *value)
    }

    pub fn word_or<T: Copy>(&mut self, key: &str, default: T, allowed: &[(T, &str)]) -> Option<T> {
        self.optional(key, |r| r.word(key, allowed)).unwrap_or(Some(default))
    }

    pub fn token(&mut self, key: &str, id: &'a Value) -> Option<u32> {
        let found = whole(id).filter(|&n| n <= MAX_SIZE);
        if found.is_none() {
            self.problem(key, format!("is {}; expected a token id", shown(id)));
        }
        found.map(|n| n as u32)
    }
}

/// A number without a fraction, `7` or `7.0`.
pub(super) fn whole(value: &Value) -> Option<u64> {
    let exact = |x: &f64| x.fract() == 0.0 && (0.0..=9e15).contains(x);
    value.as_u64().or_else(|| value.as_f64().filter(exact).map(|x| x as u64))
}

/// A JSON value as it is written in a message.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => {
            let text = value.to_string();
            if text.len() <= 60 { text } else { "a list".into() }
        }
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.chars().count() > 60 => "a long text".into(),
        _ => value.to_string(),
    }
}
