//! Registers that share a page with others: a cell reaches its own through the hypervisor, by any instruction, and nothing
//! else; the root keeps the rest of the page.

use anyhow::{Context as _, Result, ensure};

use super::violations::{parked, survives};
use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

/// Capabilities of the HPET, which never change; the first four bytes have the revision and the vendor.
const HPET: u64 = 0xfed0_0000;
/// The last page of the display's memory in text mode, of which the screen shows nothing.
const DISPLAY: u64 = 0xb_f000;

/// The cell `violator` with registers of two devices.
const CELL: &str = "\
name = \"violator\"
cpus = [2]
console = true

[[memory]]
name = \"ram\"
at = 0x0
size = \"1 MiB\"
access = \"rwx\"
loadable = true

[[memory]]
name = \"communication\"
kind = \"communication\"
at = 0x100000

[[memory]]
name = \"capabilities\"
kind = \"device\"
at = 0xfed00000
physical = 0xfed00000
size = 8
access = \"r\"
widths = [32, 64]

[[memory]]
name = \"display\"
kind = \"device\"
at = 0x600e00
physical = 0xbfe00
size = 256
widths = [8, 16, 32, 64]

[[memory]]
name = \"narrow\"
kind = \"device\"
at = 0x600f00
physical = 0xbff00
size = 60
widths = [8, 32, 64]
";

pub(super) const GROUP: Group = Group {
    name: "mmio",
    machine: |spec| Ok(spec.content("root/violator.toml", CELL)),
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[],
    checks: &[
        Check {
            name: "all-forms-of-instructions-do-what-they-do-to-ram",
            run: forms,
        },
        Check {
            name: "registers-of-a-device-are-read",
            run: capabilities,
        },
        Check {
            name: "a-width-that-is-not-named-is-refused",
            run: |context| refused(context, "memory-read address=0x600f08 bytes=2", 0x60_0f08),
        },
        Check {
            name: "an-access-beyond-the-end-is-refused",
            run: |context| refused(context, "memory-read address=0x600f38 bytes=8", 0x60_0f38),
        },
        Check {
            name: "an-access-across-registers-is-refused",
            run: |context| refused(context, "memory-read address=0x600f06 bytes=4", 0x60_0f06),
        },
        Check {
            name: "what-lies-beside-is-refused",
            run: |context| refused(context, "memory-read address=0x600f40 bytes=4", 0x60_0f40),
        },
        Check {
            name: "a-write-to-what-is-read-only-is-refused",
            run: |context| refused(context, "memory-write address=0xfed00000 value=0", HPET),
        },
        Check {
            name: "execution-is-refused",
            run: |context| refused(context, "memory-execute address=0x600e00", 0x60_0e00),
        },
        Check {
            name: "the-root-keeps-the-rest-of-the-page",
            run: rest,
        },
    ],
};

fn refused(context: &mut Context, what: &str, address: u64) -> Result<()> {
    parked(context, what, &[address])
}

fn forms(context: &mut Context) -> Result<()> {
    let said = survives(context, "forms address=0x600e00")?;
    ensure!(said.contains(" forms, 0 differ"), "{said}");
    Ok(())
}

/// What the root reads, by `r8` to `r64`.
fn read(context: &mut Context, kind: &str, address: u64) -> Result<u64> {
    context
        .poke(&format!("{kind} {address:x}"))?
        .context("the access faulted")
}

fn capabilities(context: &mut Context) -> Result<()> {
    let all = read(context, "r64", HPET)?;
    ensure!(all != u64::MAX && all >> 16 & 0xffff == 0x8086, "{all:#x}");
    let low = all & 0xffff_ffff;
    for (bytes, offset, expected) in [(4, 0, low), (4, 4, all >> 32), (8, 0, all)] {
        let address = HPET + offset;
        let what = format!("memory-read address={address:#x} bytes={bytes}");
        let said = survives(context, &what)?;
        let expected = format!("violator: read {expected:#x} at {address:#x}");
        ensure!(said.contains(&expected), "not `{expected}`, but: {said}");
    }
    ensure!(read(context, "r64", HPET)? == all, "the root has it back");
    Ok(())
}

/// As long as a cell has a part of the page, the root's accesses to the rest go through and others do not.
fn rest(context: &mut Context) -> Result<()> {
    let (foreign, own) = (DISPLAY + 0xe00, DISPLAY + 0x200);
    context.poke(&format!("w32 {foreign:x} 12345678"))?;
    context.start_cell("violator", "do=memory-read address=0x600e00")?;
    context.wait_console("violator: read 0x12345678 at 0x600e00")?;
    for (write, kind, value) in [
        ("w64", "r64", 0x8877_6655_4433_2211u64),
        ("w8", "r8", 0xa5),
        ("w16", "r16", 0xb6c7),
        ("w32", "r32", 0xdead_beef),
    ] {
        context.poke(&format!("{write} {own:x} {value:x}"))?;
        let found = read(context, kind, own)?;
        ensure!(found == value, "{kind} of the root's own reads {found:#x}");
        context.poke(&format!("{write} {foreign:x} {value:x}"))?;
        let found = read(context, kind, foreign)?;
        let ones = u64::MAX >> (64 - kind[1..].parse::<u32>()?);
        ensure!(found == ones, "{kind} of the cell's reads {found:#x}");
    }
    // Half the cell's and half the root's.
    let found = read(context, "r64", foreign - 4)?;
    ensure!(found == u64::MAX, "an access across reads {found:#x}");
    context.machine.gaol("cell destroy violator")?;
    let found = read(context, "r32", foreign)?;
    ensure!(
        found == 0x1234_5678,
        "the root's writes reached the cell's: {found:#x}"
    );
    let found = read(context, "r32", own)?;
    ensure!(found == 0xdead_beef, "the root's own was lost: {found:#x}");
    context.machine.linux_is_well(CPUS)
}
