//! Errors with their causes, for logs and for people.

use std::{error::Error, fmt};

/// Displays `error: cause: cause of the cause`.
///
/// ```
/// let error = std::io::Error::other("no space left");
/// assert_eq!(runtime::chain(&error).to_string(), "no space left");
/// ```
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

pub struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut last = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Wrappers that print their source would say it twice.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}
