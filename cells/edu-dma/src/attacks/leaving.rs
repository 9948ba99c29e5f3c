//! Devices that are at work when their cell ends.

use super::Expected::{Ended, Quarantined};
use super::Row;
use crate::attack::Attack::Leave;
use crate::attack::Leave::{Interrupt, Read, Receive, Storm, Write};

const FREED: &str = "the memory is the root's by then";
const STORM: &str = "whoever is blocked all the time keeps the IOMMU from telling of others";
const GONE: &str = "the CPU is the root's by then";

pub(super) const ROWS: &[Row] = rows! {
    "a write that is under way": Leave(Write) => Ended, FREED;
    "a read that is under way": Leave(Read) => Ended, FREED;
    "an interrupt that is under way": Leave(Interrupt) => Ended, GONE;
    "frames that come in": Leave(Receive) => Ended, FREED;
    "faults without an end": Leave(Storm) => Quarantined, STORM;
};
