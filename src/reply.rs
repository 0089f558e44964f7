//! What a venue answered.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::dialect::Dialect;
use crate::error::{Error, Result};

/// A venue's answer to a call that succeeded.
#[derive(Clone)]
pub struct Reply {
    text: Box<str>,
    round_trip: Duration,
    dialect: Arc<dyn Dialect>,
}

impl Reply {
    /// A reply that the dialect found to tell of success.
    pub(crate) fn new(text: &str, round_trip: Duration, dialect: Arc<dyn Dialect>) -> Self {
        Self { text: text.into(), round_trip, dialect }
    }

    /// Reads the result.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] if it is not of this shape.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(self.raw_result()?).map_err(|error| Error::Reply(error.to_string().into()))
    }

    /// The result as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] if there is none.
    pub fn raw_result(&self) -> Result<&str> {
        self.dialect.result(&self.text)
    }

    /// The whole message.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// From the start of the call, waiting for the rate limit included, to the receive that brought the reply.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("text", &self.text).field("round_trip", &self.round_trip).finish_non_exhaustive()
    }
}
