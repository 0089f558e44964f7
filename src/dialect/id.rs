//! Names of requests.

use std::fmt;

/// Names a request, so that its reply finds it. Numbers and texts are kept apart: 1 is not "1".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    /// A JSON integer.
    Number(i64),
    /// A JSON string, or whatever else a dialect tells requests apart by.
    Text(Box<str>),
}

/// As in JSON.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?),
        }
    }
}

impl From<i64> for Id {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Id {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_json_and_numbers_differ_from_texts() {
        assert_eq!([Id::from(1), Id::from("1"), Id::from("\"")].map(|id| id.to_string()), ["1", r#""1""#, r#""\"""#]);
        assert_ne!(Id::from(1), Id::from("1"));
    }
}
