//! readmodel
