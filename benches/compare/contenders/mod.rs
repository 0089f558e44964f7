//! Who is compared.

pub(crate) mod floor;
pub(crate) mod tungstenite;
pub(crate) mod zen;

use crate::harness::contender::Contender;

/// The contenders that need no package but this crate's.
pub(crate) fn all() -> Vec<Box<dyn Contender>> {
    let mut all = floor::all();
    all.extend(tungstenite::all());
    all.extend(zen::all());
    all
}
