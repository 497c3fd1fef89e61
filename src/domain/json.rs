//! Reading JSON that strangers sent.
