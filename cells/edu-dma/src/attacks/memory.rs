//! Memory, by DMA.

use super::Expected::{Blocked, Works};
use super::Row;
use crate::attack::Attack::{Read, Write};
use crate::attack::Place::{At, BeforeBegin, BeforeEnd, Hypervisor, Own, Root, Victim};

const OWN: &str = "it is the cell's, and for devices";
const PROGRAM: &str = "it is the cell's, and not for devices";
const HYPERVISOR: &str = "it is the hypervisor's";
const ROOTS: &str = "it is the root's";
const ANOTHER: &str = "it is another cell's";
const EDGE: &str = "it lies just beyond what is for devices";
const REGISTERS: &str = "registers are not for devices of a cell";
const NOBODY: &str = "there is nothing";

pub(super) const ROWS: &[Row] = rows! {
    "read own memory": Read(Own(0x3000)) => Works, OWN;
    "write own memory": Write(Own(0x5000)) => Works, OWN;
    "read own memory's last bytes": Read(BeforeEnd(64)) => Works, OWN;
    "write own memory across a page": Write(Own(0x6fe0)) => Works, OWN;

    "read the cell's program": Read(At(0x2000)) => Blocked, PROGRAM;
    "write the cell's program": Write(At(0xb_0000)) => Blocked, PROGRAM;
    "read the communication region": Read(At(0x10_0000)) => Blocked, PROGRAM;
    "write the communication region": Write(At(0x10_0000)) => Blocked, PROGRAM;
    "read the interrupt table of the firmware": Read(At(0)) => Blocked, PROGRAM;

    "read before own memory": Read(BeforeBegin(64)) => Blocked, EDGE;
    "write before own memory": Write(BeforeBegin(64)) => Blocked, EDGE;
    "read behind own memory": Read(BeforeEnd(0)) => Blocked, EDGE;
    "write behind own memory": Write(BeforeEnd(0)) => Blocked, EDGE;

    "read the root's memory": Read(Root(0)) => Blocked, ROOTS;
    "write the root's memory": Write(Root(0x100)) => Blocked, ROOTS;
    "read the root's memory at the end of a page": Read(Root(0xfc0)) => Blocked, ROOTS;
    "write the root's memory at the end of a page": Write(Root(0xfc0)) => Blocked, ROOTS;
    "write the root's memory across a page": Write(Root(0xfe0)) => Blocked, ROOTS;
    "read the root's kernel": Read(At(0x100_0000)) => Blocked, ROOTS;
    "write the root's kernel": Write(At(0x100_0000)) => Blocked, ROOTS;
    "write the root's kernel further up": Write(At(0x120_0040)) => Blocked, ROOTS;
    "read the root's first pages": Read(At(0x9_0000)) => Blocked, ROOTS;

    "read the hypervisor's first bytes": Read(Hypervisor(0)) => Blocked, HYPERVISOR;
    "write the hypervisor's first bytes": Write(Hypervisor(0)) => Blocked, HYPERVISOR;
    "read the hypervisor's second page": Read(Hypervisor(0x1000)) => Blocked, HYPERVISOR;
    "write the hypervisor's second page": Write(Hypervisor(0x1000)) => Blocked, HYPERVISOR;
    "read the hypervisor in the middle": Read(Hypervisor(0x20_0000)) => Blocked, HYPERVISOR;
    "write the hypervisor in the middle": Write(Hypervisor(0x20_0000)) => Blocked, HYPERVISOR;
    "write the hypervisor's last bytes": Write(Hypervisor(0x3f_ffc0)) => Blocked, HYPERVISOR;

    "read another cell's program": Read(Victim(0x2000)) => Blocked, ANOTHER;
    "write another cell's program": Write(Victim(0x2000)) => Blocked, ANOTHER;
    "read another cell's start": Read(Victim(0)) => Blocked, ANOTHER;
    "write another cell's start": Write(Victim(0)) => Blocked, ANOTHER;
    "write another cell's last bytes": Write(Victim(0xf_ffc0)) => Blocked, ANOTHER;

    "read the local APIC's page": Read(At(0xfee0_0000)) => Blocked, REGISTERS;
    "read an IOAPIC": Read(At(0xfec0_0000)) => Blocked, REGISTERS;
    "write an IOAPIC": Write(At(0xfec0_0000)) => Blocked, REGISTERS;
    "read the HPET": Read(At(0xfed0_0000)) => Blocked, REGISTERS;
    "write the HPET": Write(At(0xfed0_0100)) => Blocked, REGISTERS;
    "read an IOMMU's registers": Read(At(0xfed9_0000)) => Blocked, REGISTERS;
    "write an IOMMU's registers": Write(At(0xfed9_0000)) => Blocked, REGISTERS;
    "read configuration space": Read(At(0xb000_0000)) => Blocked, REGISTERS;
    "write configuration space": Write(At(0xb00f_a000)) => Blocked, REGISTERS;
    "write the display's memory": Write(At(0xfd00_0000)) => Blocked, REGISTERS;
    "read the firmware's flash": Read(At(0xffff_ff00)) => Blocked, REGISTERS;
    "read above all memory": Read(At(0xa000_0000)) => Blocked, NOBODY;
    "write above all memory": Write(At(0xa000_0000)) => Blocked, NOBODY;
};
