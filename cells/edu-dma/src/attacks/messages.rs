//! Interrupts by messages: given to the function by configuration space, and written by DMA.

use super::Expected::{Interrupts, SilentWhereBlocked};
use super::Row;
use crate::attack::Address::{At, Entry, Logical, Physical};
use crate::attack::Attack::{self, WriteMessage};
use crate::attack::Cpu::{All, Own, Root, Victim};
use crate::attack::{Address, Message};

const OWN: &str = "the cell may interrupt its own CPU";
const SET: &str = "of a set, the own CPU only is reached";
const OTHERS: &str = "a CPU of others";
const MODE: &str = "no delivery mode but fixed (and NMI) is a cell's to use";
const VECTOR: &str = "no interrupt has such a vector";
const PLACE: &str = "a message goes to no memory";
const HANDLE: &str = "the entry is another's, or nobody's";
const FORGED: &str = "messages are made by hardware, from what was checked";

/// A vector that every CPU would take.
const FIXED: u32 = 0x71;
const LOWEST: u32 = 1 << 8 | FIXED;
const SMI: u32 = 2 << 8;
const RESERVED: u32 = 3 << 8 | FIXED;
const NMI: u32 = 4 << 8;
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8 | 8;
const EXTERNAL: u32 = 7 << 8;
const LEVEL: u32 = 1 << 15 | 1 << 14 | FIXED;

const fn given(address: Address, data: u32) -> Attack {
    Attack::Message(Message { address, data })
}

const fn written(address: Address, data: u32) -> Attack {
    WriteMessage(Message { address, data })
}

pub(super) const ROWS: &[Row] = rows! {
    "a message to the own CPU": given(Physical(Own), FIXED) => Interrupts(1), OWN;
    "another vector of the own CPU": given(Physical(Own), 0xb3) => Interrupts(1), OWN;
    "a message to the root": given(Physical(Root), FIXED) => Interrupts(0), OTHERS;
    "a message to another cell": given(Physical(Victim), FIXED) => Interrupts(0), OTHERS;
    "a message to all": given(Physical(All), FIXED) => Interrupts(0), OTHERS;
    "a message to a set with the root": given(Logical(Root), FIXED) => Interrupts(0), OTHERS;
    "a message to a set with another cell": given(Logical(Victim), FIXED) => Interrupts(0), OTHERS;
    "a message to the lowest priority of all": given(Logical(All), LOWEST) => Interrupts(1), SET;
    "an NMI to the root": given(Physical(Root), NMI) => Interrupts(0), OTHERS;
    "an NMI to another cell": given(Physical(Victim), NMI) => Interrupts(0), OTHERS;
    "an SMI": given(Physical(Own), SMI) => Interrupts(0), MODE;
    "an SMI to all": given(Physical(All), SMI) => Interrupts(0), MODE;
    "a reserved delivery mode": given(Physical(Own), RESERVED) => Interrupts(0), MODE;
    "INIT": given(Physical(Own), INIT) => Interrupts(0), MODE;
    "INIT to the root": given(Physical(Root), INIT) => Interrupts(0), MODE;
    "a startup IPI": given(Physical(Own), STARTUP) => Interrupts(0), MODE;
    "ExtINT": given(Physical(Own), EXTERNAL) => Interrupts(0), MODE;
    "ExtINT to the root": given(Physical(Root), EXTERNAL) => Interrupts(0), MODE;
    "vector 2": given(Physical(Own), 2) => Interrupts(0), VECTOR;
    "vector 15": given(Physical(Own), 15) => Interrupts(0), VECTOR;
    "a message to the root's memory": given(At(0x100_0000), 0x0bad_0bad) => Interrupts(0), PLACE;
    "a message to own memory": given(At(0x20_0000), 0x0bad_0bad) => Interrupts(0), PLACE;
    "a message to an IOAPIC": given(At(0xfec0_0000), 0x10) => Interrupts(0), PLACE;
    "a message to an IOMMU": given(At(0xfed9_0018), 0) => Interrupts(0), PLACE;
    "a message above 4 GiB": given(At(0x1_fee0_0000), FIXED) => Interrupts(0), PLACE;
    "a message just behind those for interrupts": given(At(0xfef0_0000), FIXED) => Interrupts(0), PLACE;
    "the first entry of the remapping table": given(Entry(0), 0) => Interrupts(0), HANDLE;
    "an entry of the root's": given(Entry(1), 0) => Interrupts(0), HANDLE;
    "an entry beyond all that are used": given(Entry(0x3fff), 0) => Interrupts(0), HANDLE;

    "the first entry, by DMA": written(Entry(0), 0) => Interrupts(0), HANDLE;
    "an entry of the root's, by DMA": written(Entry(1), 0) => Interrupts(0), HANDLE;
    "another entry of the root's, by DMA": written(Entry(5), 0) => Interrupts(0), HANDLE;
    "an absent entry, by DMA": written(Entry(0x1000), 0) => Interrupts(0), HANDLE;
    "the last entry, by DMA": written(Entry(0x7fff), 0) => Interrupts(0), HANDLE;

    "a message to the root, by DMA": written(Physical(Root), FIXED) => SilentWhereBlocked, FORGED;
    "a message to another cell, by DMA": written(Physical(Victim), FIXED) => SilentWhereBlocked, FORGED;
    "a message to all, by DMA": written(Physical(All), FIXED) => SilentWhereBlocked, FORGED;
    "a message to a set, by DMA": written(Logical(All), LOWEST) => SilentWhereBlocked, FORGED;
    "a level of the root's, by DMA": written(Physical(Root), LEVEL) => SilentWhereBlocked, FORGED;
    "an NMI to the root, by DMA": written(Physical(Root), NMI) => SilentWhereBlocked, FORGED;
    "an SMI, by DMA": written(Physical(Root), SMI) => SilentWhereBlocked, FORGED;
    "INIT to another cell, by DMA": written(Physical(Victim), INIT) => SilentWhereBlocked, FORGED;
    "a startup IPI to another cell, by DMA": written(Physical(Victim), STARTUP) => SilentWhereBlocked, FORGED;
    "ExtINT to the root, by DMA": written(Physical(Root), EXTERNAL) => SilentWhereBlocked, FORGED;
};
