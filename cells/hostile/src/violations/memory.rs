//! Memory: of others, of nobody, and of the cell's own used as it must not be.

use super::Expected::{Any, Permitted, Stopped};
use super::{GENERAL_PROTECTION, PAGE_FAULT, Violation};
use crate::attempt::Attempt::Memory;
use crate::attempt::Place::{
    At, Communication, Constant, Data, Hypervisor, Scratch, Shared, Victim,
};
use crate::attempt::Use::{
    Add, Copy, Descriptors, Execute, Fill, Interrupts, PageTables, Push, Read, Write,
};
use crate::attempt::Width::{Byte, Long, Quad, Word};

const HYPERVISOR: &str = "it is the hypervisor's";
const ROOTS: &str = "it is the root's";
const ANOTHER: &str = "it is another cell's";
const DEVICE: &str = "it is a device's, and not the cell's";
const NOBODY: &str = "there is nothing, or not for the cell";
const BEYOND: &str = "it lies just beyond what the cell has";
const RIGHTS: &str = "the configuration does not permit that";
const OWN: &str = "it is the cell's own";
const ITSELF: &str = "the cell harms nobody but itself";
const INDIRECT: &str = "the processor reaches there on its own";

pub(super) const ROWS: &[Violation] = rows! {
    "write of the communication region's signature": Memory(Communication(0), Write(Long, 0)) => Permitted, ITSELF;
    "write of the last word of the communication region": Memory(Communication(0xff8), Write(Quad, u64::MAX)) => Permitted, ITSELF;
    "read of shared memory": Memory(Shared(0), Read(Quad)) => Any, OWN;
    "write of shared memory": Memory(Shared(0xfff8), Write(Quad, u64::MAX)) => Permitted, OWN;
    "read of constant memory": Memory(Constant(0), Read(Long)) => Any, OWN;
    "write of scratch memory": Memory(Scratch(0), Write(Byte, 0xff)) => Permitted, OWN;
    "no canonical address": Memory(At(0x8000_0000_0000_0000), Read(Byte)) => GENERAL_PROTECTION, OWN;
    "write to no canonical address": Memory(At(0x7fff_ffff_ffff_ffff), Write(Quad, 0)) => GENERAL_PROTECTION, OWN;
    "an address that the cell does not map": Memory(At(0x7000_0000_0000), Read(Long)) => PAGE_FAULT, OWN;

    "read the hypervisor's first byte": Memory(Hypervisor(0), Read(Byte)) => Stopped, HYPERVISOR;
    "write the hypervisor's first word": Memory(Hypervisor(0), Write(Quad, 0)) => Stopped, HYPERVISOR;
    "write the hypervisor's data": Memory(Hypervisor(0x10_0000), Write(Byte, 0xff)) => Stopped, HYPERVISOR;
    "add to the hypervisor's last word": Memory(Hypervisor(0x3f_fff8), Add(Quad, 1)) => Stopped, HYPERVISOR;
    "execute the hypervisor": Memory(Hypervisor(0), Execute) => Stopped, HYPERVISOR;
    "the hypervisor as page table": Memory(Hypervisor(0x1000), PageTables) => Stopped, INDIRECT;
    "the hypervisor as stack": Memory(Hypervisor(0x2000), Push) => Stopped, INDIRECT;
    "read another cell's memory": Memory(Victim(0), Read(Long)) => Stopped, ANOTHER;
    "write another cell's program": Memory(Victim(0x2000), Write(Long, 0xcccc_cccc)) => Stopped, ANOTHER;
    "fill another cell's memory": Memory(Victim(0), Fill(0x1_0000)) => Stopped, ANOTHER;
    "copy another cell's memory": Memory(Victim(0), Copy(0x1000)) => Stopped, ANOTHER;
    "read the root's memory": Memory(At(0x100_0000), Read(Quad)) => Stopped, ROOTS;
    "write the root's kernel": Memory(At(0x100_0000), Write(Quad, 0)) => Stopped, ROOTS;
    "write the root's memory at 16 MiB less a word": Memory(At(0xff_fffe), Write(Long, 0)) => Stopped, ROOTS;
    "execute the root's memory": Memory(At(0x100_0000), Execute) => Stopped, ROOTS;
    "descriptors in the root's memory": Memory(At(0x100_0000), Descriptors) => Stopped, INDIRECT;
    "interrupt table in the root's memory": Memory(At(0x100_0000), Interrupts) => Stopped, INDIRECT;
    "the xAPIC's page, read": Memory(At(0xfee0_0020), Read(Long)) => Stopped, DEVICE;
    "the xAPIC's page, a command": Memory(At(0xfee0_0300), Write(Long, 0x4500)) => Stopped, DEVICE;
    "an IOAPIC": Memory(At(0xfec0_0000), Write(Long, 0x10)) => Stopped, DEVICE;
    "the HPET": Memory(At(0xfed0_0010), Write(Quad, 0)) => Stopped, DEVICE;
    "firmware's flash": Memory(At(0xffff_fff0), Write(Byte, 0)) => Stopped, DEVICE;
    "memory-mapped configuration": Memory(At(0xe000_0000), Read(Long)) => Stopped, DEVICE;
    "an IOMMU's registers": Memory(At(0xfed9_0018), Write(Long, 0)) => Stopped, DEVICE;
    "a trusted platform module": Memory(At(0xfed4_0000), Read(Byte)) => Stopped, DEVICE;
    "a PCI device's memory": Memory(At(0xf000_0000), Write(Word, 0xffff)) => Stopped, DEVICE;
    "behind the communication region": Memory(At(0x10_1000), Read(Byte)) => Stopped, BEYOND;
    "across the end of the communication region": Memory(At(0x10_0ffe), Write(Quad, 0)) => Stopped, BEYOND;
    "behind shared memory": Memory(Shared(0x1_0000), Write(Byte, 0)) => Stopped, BEYOND;
    "a string across the end of shared memory": Memory(Shared(0xff00), Fill(0x200)) => Stopped, BEYOND;
    "in front of constant memory": Memory(At(0x3f_ffff), Read(Byte)) => Stopped, BEYOND;
    "above 4 GiB": Memory(At(0x1_0000_0000), Read(Quad)) => Stopped, NOBODY;
    "far above all memory": Memory(At(0x40_0000_0000), Write(Quad, 0)) => Stopped, NOBODY;
    "the top of 39 bits": Memory(At(0x7f_ffff_fff8), Read(Quad)) => Stopped, NOBODY;
    "write of constant memory": Memory(Constant(0x10), Write(Byte, 1)) => Stopped, RIGHTS;
    "add to constant memory": Memory(Constant(0x18), Add(Quad, 1)) => Stopped, RIGHTS;
    "constant memory as stack": Memory(Constant(0x800), Push) => Stopped, INDIRECT;
    "execute data": Memory(Data(0), Execute) => Stopped, RIGHTS;
    "execute the communication region": Memory(Communication(0x800), Execute) => Stopped, RIGHTS;
    "execute shared memory": Memory(Shared(0x100), Execute) => Stopped, RIGHTS;
};
