//! Registers of the PCI Express, advanced features and power management capabilities, and what a cell may write there.
//!
//! PCI Express Base specification, "PCI Express Capability Structure"; PCI Bus Power Management Interface specification,
//! "Power Management Register Block Definition".
#![forbid(unsafe_code)]

/// PCI Express: its version, in the low bits.
pub const VERSION: u16 = 0x02;
/// In the word of the version, above it: the kind of a root port, of a switch's upstream and of its downstream ports.
pub const KIND_ROOT_PORT: u16 = 4;
/// The last of these three.
pub const KIND_DOWNSTREAM_PORT: u16 = 6;
/// PCI Express: device capabilities.
pub const DEVICE: u16 = 0x04;
/// [`DEVICE`]: the function can be reset alone.
pub const DEVICE_HAS_RESET: u32 = 1 << 28;
/// PCI Express: device control.
pub const CONTROL: u16 = 0x08;
/// [`CONTROL`]: starts a reset of the function.
pub const CONTROL_RESET: u16 = 1 << 15;
/// [`CONTROL`]: which errors are told to the root port, and end as an interrupt or an NMI of the machine.
pub const CONTROL_REPORTS: u16 = 0xf;
/// [`CONTROL`]: what a cell may write: relaxed ordering, no snoop, size of read requests. The size of payloads is agreed
/// upon between all functions of a hierarchy, and a reset takes longer than an exit may.
pub const CONTROL_OF_CELLS: u16 = 1 << 4 | 1 << 11 | 7 << 12;
/// PCI Express: device status.
pub const STATUS: u16 = 0x0a;
/// [`STATUS`]: errors that were seen; ones are written to clear them.
pub const STATUS_ERRORS: u16 = 0xf;
/// [`STATUS`]: the function waits for answers.
pub const STATUS_PENDING: u16 = 1 << 5;
/// PCI Express: link control.
pub const LINK_CONTROL: u16 = 0x10;
/// [`LINK_CONTROL`]: starts a training of the link.
pub const LINK_CONTROL_RETRAIN: u16 = 1 << 5;
/// PCI Express, from version 2 on: device control 2.
pub const CONTROL_2: u16 = 0x28;
/// Bytes of the capability from version 2 on.
pub const LENGTH_2: u16 = 0x3c;

/// Advanced features: the doubleword of the capabilities.
pub const FEATURES: u16 = 0x00;
/// [`FEATURES`]: the function knows whether it waits for answers, and can be reset alone.
pub const FEATURES_RESET: u32 = 3 << 24;
/// Advanced features: control; bit 0 starts a reset.
pub const FEATURES_CONTROL: u16 = 0x04;
/// Advanced features: status; bit 0: the function waits for answers.
pub const FEATURES_STATUS: u16 = 0x05;

/// Power management: control and status.
pub const POWER: u16 = 0x04;
/// [`POWER`]: the power state.
pub const POWER_STATE: u16 = 3;
/// [`POWER`]: the way back from the state D3hot does not reset the function.
pub const POWER_NO_RESET: u16 = 1 << 3;
/// [`POWER`]: wake-ups: enabled, and seen (a one clears it).
pub const POWER_WAKE: u16 = 1 << 8;
/// [`POWER`]: a wake-up was seen.
pub const POWER_WOKEN: u16 = 1 << 15;
