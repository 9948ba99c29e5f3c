//! The table of messages (MSI-X), in all widths.

use super::Expected::Interrupts;
use super::Row;
use crate::attack::Address::{At, Entry, Logical, Physical};
use crate::attack::Attack::{self, Table};
use crate::attack::Cpu::{All, Own, Root, Victim};
use crate::attack::Width::{Byte, Long, Quad, Word};
use crate::attack::{Address, Message, Width};

const OWN: &str = "the cell may interrupt its own CPU";
const OTHERS: &str = "a CPU of others";
const MODE: &str = "no delivery mode but fixed (and NMI) is a cell's to use";
const PLACE: &str = "a message goes to no memory";
const PIECES: &str = "what is written in pieces is checked as a whole";
const HANDLE: &str = "the entry is another's, or nobody's";

const FIXED: u32 = 0x72;
const SMI: u32 = 2 << 8;
const NMI: u32 = 4 << 8;
const INIT: u32 = 5 << 8;

const fn filled(width: Width, address: Address, data: u32) -> Attack {
    Attack::Entry(width, Message { address, data })
}

pub(super) const ROWS: &[Row] = rows! {
    "an entry to the own CPU": filled(Long, Physical(Own), FIXED) => Interrupts(1), OWN;
    "an entry to the root": filled(Long, Physical(Root), FIXED) => Interrupts(0), OTHERS;
    "an entry to another cell": filled(Long, Physical(Victim), FIXED) => Interrupts(0), OTHERS;
    "an entry to all": filled(Long, Physical(All), FIXED) => Interrupts(0), OTHERS;
    "an entry to a set with the root": filled(Long, Logical(Root), FIXED) => Interrupts(0), OTHERS;
    "an entry to the root in words of 8 bytes": filled(Quad, Physical(Root), FIXED) => Interrupts(0), PIECES;
    "an entry to the root in words of 2 bytes": filled(Word, Physical(Root), FIXED) => Interrupts(0), PIECES;
    "an entry to the root in bytes": filled(Byte, Physical(Root), FIXED) => Interrupts(0), PIECES;
    "an entry with an NMI to the root": filled(Long, Physical(Root), NMI) => Interrupts(0), OTHERS;
    "an entry with an SMI": filled(Long, Physical(Own), SMI) => Interrupts(0), MODE;
    "an entry with INIT": filled(Long, Physical(Victim), INIT) => Interrupts(0), MODE;
    "an entry with an INIT in bytes": filled(Byte, Physical(Victim), INIT) => Interrupts(0), MODE;
    "an entry to the root's memory": filled(Long, At(0x100_0000), 0x0bad_0bad) => Interrupts(0), PLACE;
    "an entry to an IOAPIC": filled(Quad, At(0xfec0_0000), 0x10) => Interrupts(0), PLACE;
    "an entry above 4 GiB": filled(Long, At(0x1_fee0_0000), FIXED) => Interrupts(0), PLACE;
    "an entry with another's remapping entry": filled(Long, Entry(1), 0) => Interrupts(0), HANDLE;

    // Entry 0 leads to the own CPU when one of these begins.
    "the own CPU's id changed in one byte": Table(1, Byte, 0) => Interrupts(0), PIECES;
    "the address changed in its upper half": Table(4, Byte, 1) => Interrupts(0), PIECES;
    "the delivery mode changed in one byte": Table(9, Byte, 5) => Interrupts(0), PIECES;
    "the vector and the mask at once": Table(8, Quad, 0x0000_0272) => Interrupts(0), PIECES;
    "address and destination at once": Table(0, Quad, 0xfec0_0000) => Interrupts(0), PIECES;
    "the mask in two bytes": Table(12, Word, 1) => Interrupts(0), "what is masked does not interrupt";
};
