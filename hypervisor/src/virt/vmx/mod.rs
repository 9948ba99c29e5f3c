//! Intel VMX: definitions ([`fields`]), logic ([`capabilities`]) and hardware (the rest).

pub mod capabilities;
pub mod control;
pub mod entry;
pub mod exit;
pub mod fields;
pub mod instructions;
pub mod operation;
