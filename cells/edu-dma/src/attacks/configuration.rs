//! Configuration space: addresses, command, power, resets.

use super::Expected::Reads;
use super::Row;
use crate::attack::Attack::{Configure, MasterAtStart, Move};
use crate::attack::Function::{Card, Edu};

const STAYS: &str = "registers stay where they are, and where the cell has them";
const MACHINE: &str = "it concerns all of the machine";
const HANDED: &str = "the hypervisor resets a function, when it changes hands";
const DOOR: &str = "a read-only memory would be mapped onto others";
const EARLY: &str = "nobody has told the device yet what it may do";
const MESSAGES: &str = "one message is what the hypervisor gives";

/// What `edu` and the card say in a register of theirs.
const EDU: u32 = 0x0100_00ed;
const CARD: u32 = 0x0008_0000;

const COMMAND: u16 = 0x04;
const BAR_0: u16 = 0x10;
const ROM: u16 = 0x30;
/// Parity, stepping, system errors, fast transfers to others, special cycles, memory write and invalidate.
const REPORTS: u32 = 0x03f8;
/// Capabilities of the card, as QEMU has them.
const POWER_CONTROL: u16 = 0xc8 + 4;
const MSI_CONTROL: u16 = 0xd0;
const EXPRESS_CONTROL: u16 = 0xe0 + 8;
const RESET: u32 = 1 << 15;
/// The MSI capability of `edu`, and how many messages it may send.
const EDU_MSI_CONTROL: u16 = 0x40;
const SEVERAL: u32 = 7 << 20;

pub(super) const ROWS: &[Row] = rows! {
    "bus master before the start": MasterAtStart(Edu) => Reads(0), EARLY;
    "the card bus master before the start": MasterAtStart(Card) => Reads(0), EARLY;
    "registers moved onto the root's kernel": Move(Edu, 0x100_0000) => Reads(EDU), STAYS;
    "registers moved onto the local APICs": Move(Edu, 0xfee0_0000) => Reads(EDU), STAYS;
    "registers moved onto an IOAPIC": Move(Edu, 0xfec0_0000) => Reads(EDU), STAYS;
    "registers moved onto an IOMMU": Move(Edu, 0xfed0_0000) => Reads(EDU), STAYS;
    "registers moved onto the display": Move(Edu, 0xfd00_0000) => Reads(EDU), STAYS;
    "registers moved onto configuration space": Move(Edu, 0xb000_0000) => Reads(EDU), STAYS;
    "registers moved onto the card": Move(Edu, 0xfeb0_0000) => Reads(EDU), STAYS;
    "registers moved nowhere": Move(Edu, 0) => Reads(EDU), STAYS;
    "the card moved onto the other device": Move(Card, 0xfea0_0000) => Reads(CARD), STAYS;
    "the card moved onto an IOAPIC": Move(Card, 0xfec0_0000) => Reads(CARD), STAYS;
    "expansion ROM switched on": Configure(Edu, ROM, 0x100_0001, u32::MAX) => Reads(0), DOOR;
    "the card's expansion ROM switched on": Configure(Card, ROM, 0xfec0_0001, u32::MAX) => Reads(0), DOOR;
    "reports of errors switched on": Configure(Edu, COMMAND, 0xffff, REPORTS) => Reads(0), MACHINE;
    "the card's reports of errors switched on": Configure(Card, COMMAND, 0xffff, REPORTS) => Reads(0), MACHINE;
    "the kind of a register changed": Configure(Edu, BAR_0, u32::MAX, 0xf) => Reads(0), STAYS;
    "the card put to sleep": Configure(Card, POWER_CONTROL, 3, 3) => Reads(0), HANDED;
    "the card reset at the function's level": Configure(Card, EXPRESS_CONTROL, RESET, RESET) => Reads(0), HANDED;
    "several messages": Configure(Edu, EDU_MSI_CONTROL, SEVERAL, SEVERAL) => Reads(0), MESSAGES;
    "the card's several messages": Configure(Card, MSI_CONTROL, SEVERAL, SEVERAL) => Reads(0), MESSAGES;
};
