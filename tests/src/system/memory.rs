//! Memory from a running Linux, which was booted without a reservation.

use anyhow::{Result, ensure};

use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::machine::Spec;
use crate::runner::{Check, Group};

const MIB: u64 = 1 << 20;
/// Of the machine, and of what the cell has besides the RAM that it runs in.
const MACHINE_MIB: u32 = 1024;
const LARGE: u64 = 300 * MIB;

pub(super) const GROUP: Group = Group {
    name: "memory",
    machine: |spec| {
        let spec = Spec {
            memory_mib: MACHINE_MIB,
            ..spec
        };
        Ok(spec.content(
            "root/large.toml",
            "name = \"large\"\ncpus = [2]\nconsole = true\n\n\
             [[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"1 MiB\"\naccess = \"rwx\"\nloadable = true\n\n\
             [[memory]]\nname = \"communication\"\nkind = \"communication\"\nat = 0x100000\n\n\
             [[memory]]\nname = \"much\"\nat = 0x40000000\nsize = \"300 MiB\"\naccess = \"rw\"\n",
        ))
    },
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "the-hypervisor-needs-no-configuration",
            run: without_configuration,
        },
        Check {
            name: "a-large-cell-comes-and-goes",
            run: contiguous,
        },
        Check {
            name: "memory-blocks-go-offline-and-come-back",
            run: blocks,
        },
        Check {
            name: "a-large-cell-after-much-load",
            run: fragmented,
        },
        Check {
            name: "a-shortage-is-told-with-what-would-help",
            run: shortage,
        },
        Check {
            name: "a-killed-command-loses-no-memory",
            run: killed,
        },
    ],
};

/// A piece of a cell's memory, as sysfs tells it.
struct Piece {
    physical: u64,
    guest: u64,
}

impl Context {
    /// Kilobytes that Linux counts under this name.
    fn meminfo(&mut self, name: &str) -> Result<u64> {
        let text = self.machine.check(&format!(
            "sed -n 's/^{name}: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"
        ))?;
        Ok(text.trim().parse()?)
    }

    fn memory_blocks(&mut self) -> Result<String> {
        self.machine.check("cat /sys/devices/gaol/memory_blocks")
    }

    /// Asserts that all memory blocks are online, and that Linux has as much memory as before.
    fn all_memory_is_back(&mut self, total: u64) -> Result<()> {
        let blocks = self.memory_blocks()?;
        ensure!(blocks.trim().is_empty(), "blocks are still away: {blocks}");
        let states = self
            .machine
            .check("cat /sys/devices/system/memory/memory*/state")?;
        ensure!(
            states.lines().count() == 8 && states.lines().all(|state| state.trim() == "online"),
            "not all blocks are online: {states}"
        );
        let now = self.meminfo("MemTotal")?;
        ensure!(now == total, "Linux has {now} KiB, not {total}");
        self.machine.linux_is_well(CPUS)
    }

    /// Makes memory as fragmented as is said: a page in each `stride` from one address to the other can't be moved.
    fn hoard(&mut self, start: u64, end: u64, stride: u64) -> Result<()> {
        let text = self.machine.check(&format!(
            "echo {start:x} {end:x} {stride:x} >/proc/gaol-test/hoard && cat /proc/gaol-test/hoard"
        ))?;
        let pages: u64 = text.trim().parse()?;
        ensure!(pages > 0, "no page was taken");
        Ok(())
    }

    fn end_hoard(&mut self) -> Result<()> {
        self.machine.check("echo 0 >/proc/gaol-test/hoard")?;
        Ok(())
    }

    /// The pieces of the large region, which must be all of it, each aligned to 2 MiB.
    fn pieces(&mut self) -> Result<Vec<Piece>> {
        let text = self.machine.check("cat /sys/devices/gaol/cells/1/memory")?;
        let mut pieces = Vec::new();
        let mut next = 0x4000_0000;
        for line in text.lines().filter(|line| line.starts_with("much ")) {
            let numbers: Vec<u64> = line
                .split_whitespace()
                .filter_map(|number| u64::from_str_radix(number.strip_prefix("0x")?, 16).ok())
                .collect();
            let [physical, guest, size, _] = numbers[..] else {
                anyhow::bail!("sysfs says {line:?}");
            };
            ensure!(guest == next && physical % (2 * MIB) == 0, "{text}");
            next += size;
            pieces.push(Piece { physical, guest });
        }
        ensure!(next == 0x4000_0000 + LARGE, "not all is there: {text}");
        Ok(pieces)
    }

    /// The cell runs, and then is gone.
    fn live(&mut self) -> Result<()> {
        self.machine
            .gaol("cell load large hello.bin -s \"every=100ms\"")?;
        self.machine.gaol("cell start large")?;
        self.wait_console("hello: ")?;
        self.machine.gaol("cell destroy large")?;
        Ok(())
    }
}

fn without_configuration(context: &mut Context) -> Result<()> {
    let total = context.meminfo("MemTotal")?;
    let command_line = context.machine.check("cat /proc/cmdline")?;
    ensure!(
        !command_line.contains("memmap="),
        "the machine was booted with {command_line}"
    );
    context.machine.gaol("enable")?;
    let (physical, size) = context.region()?;
    ensure!(
        physical % (2 * MIB) == 0 && size >= 4 * MIB,
        "the hypervisor has {size:#x} bytes at {physical:#x}"
    );
    context.disable()?;
    // Linux gets the memory without what was in it.
    for offset in [0, 0x1000, size / 2] {
        let word = context.poke(&format!("r64 {:x}", physical + offset))?;
        ensure!(word.is_some(), "{offset:#x} can't be read");
    }
    let signature = context.poke(&format!("r64 {physical:x}"))?;
    let image = u64::from_le_bytes(gaol_abi::image::SIGNATURE);
    ensure!(signature != Some(image), "the hypervisor's image was left");
    context.all_memory_is_back(total)
}

fn contiguous(context: &mut Context) -> Result<()> {
    let total = context.meminfo("MemTotal")?;
    context.enable()?;
    context.machine.gaol("cell create large.toml")?;
    let count = context.pieces()?.len();
    ensure!(count == 1, "there are {count} pieces");
    let blocks = context.memory_blocks()?;
    ensure!(blocks.is_empty(), "blocks were taken offline: {blocks}");
    context.live()?;
    context.disable()?;
    context.all_memory_is_back(total)
}

fn blocks(context: &mut Context) -> Result<()> {
    let total = context.meminfo("MemTotal")?;
    context.enable()?;
    // Nowhere are 300 MiB left in one piece, but some blocks can do without the page.
    context.hoard(0, u64::from(MACHINE_MIB) * MIB, 256 * MIB)?;
    context.machine.gaol("cell create large.toml")?;
    let pieces = context.pieces()?;
    let blocks = context.memory_blocks()?;
    let used = blocks
        .lines()
        .filter(|line| line.ends_with(" used"))
        .count() as u64;
    ensure!(
        used > 0 && used == blocks.lines().count() as u64,
        "the blocks are {blocks}"
    );
    let away = context.meminfo("MemTotal")?;
    ensure!(
        away + used * (128 << 10) == total,
        "Linux has {away} KiB of {total}, without {used} blocks"
    );
    // Linux can't have them back meanwhile.
    let first = blocks.split_whitespace().next().unwrap_or_default();
    let number = u64::from_str_radix(first.trim_start_matches("0x"), 16)? / (128 * MIB);
    let output = context.machine.run(&format!(
        "echo online >/sys/devices/system/memory/memory{number}/state"
    ))?;
    ensure!(output.status != 0, "Linux took block {number} back");
    ensure!(
        pieces
            .iter()
            .any(|piece| piece.physical / (128 * MIB) == number),
        "the cell has nothing of block {number}"
    );
    context.live()?;
    context.end_hoard()?;
    context.disable()?;
    context.all_memory_is_back(total)
}

fn fragmented(context: &mut Context) -> Result<()> {
    let total = context.meminfo("MemTotal")?;
    // Much memory was used and half of it freed again, here and there; some of it can't be moved in any block.
    context.machine.check(
        "mkdir -p /tmp/load && i=0 && while [ $i -lt 60 ]; do dd if=/dev/zero of=/tmp/load/$i bs=64k count=80 \
         2>/dev/null || exit 1; i=$((i+1)); done; [ ! -b /dev/sda ] || dd if=/dev/sda of=/dev/null bs=64k count=800 2>/dev/null; \
         rm /tmp/load/*[13579]",
    )?;
    context.hoard(0, u64::from(MACHINE_MIB) * MIB, 64 * MIB)?;
    context.enable()?;
    context.machine.gaol("cell create large.toml")?;
    let pieces = context.pieces()?;
    ensure!(
        pieces.len() > 3,
        "memory is not fragmented: {} pieces, the first at {:#x}",
        pieces.len(),
        pieces.first().map_or(0, |piece| piece.guest)
    );
    context.live()?;
    context.disable()?;
    context.end_hoard()?;
    context.machine.check("rm -r /tmp/load")?;
    context.all_memory_is_back(total)
}

fn shortage(context: &mut Context) -> Result<()> {
    let total = context.meminfo("MemTotal")?;
    context.enable()?;
    context.hoard(0, u64::from(MACHINE_MIB) * MIB, 4 * MIB)?;
    let output = context
        .machine
        .refused("cell create large.toml", "Linux could not give")?;
    let text = output.stdout.replace('\r', "");
    let (sentence, remedy) = text.trim().split_once("\n  ").unwrap_or_default();
    let found = sentence
        .strip_prefix("gaol: cannot create cell \"large\": Linux could not give 300 MiB for memory \"much\": ")
        .and_then(|rest| rest.strip_suffix(" MiB is all that was found"))
        .and_then(|number| number.parse::<u64>().ok());
    ensure!(
        found.is_some_and(|found| (32..300).contains(&found)),
        "the command says {text:?}"
    );
    let address = remedy
        .strip_prefix("End programs that use much memory, or boot Linux with `memmap=300M$0x")
        .and_then(|rest| rest.split_once('`'))
        .and_then(|(digits, _)| u64::from_str_radix(digits, 16).ok());
    let Some(address) = address else {
        anyhow::bail!("the command says {text:?}");
    };
    ensure!(
        remedy.ends_with(&format!(
            "` (in a GRUB file: \\$) and set `physical = {address:#x}` for this memory."
        )),
        "the command says {text:?}"
    );
    let ram = context.machine.check("grep 'System RAM' /proc/iomem")?;
    let is_ram = ram.lines().any(|line| {
        let Some((first, last)) = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'))
        else {
            return false;
        };
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
        number(first) <= address && address + LARGE <= number(last) + 1
    });
    ensure!(is_ram, "there is no RAM at {address:#x}: {ram}");
    // It was the memory, and nothing else.
    context.end_hoard()?;
    context.machine.gaol("cell create large.toml")?;
    context.machine.gaol("cell destroy large")?;
    context.disable()?;
    context.all_memory_is_back(total)
}

fn killed(context: &mut Context) -> Result<()> {
    let total = context.meminfo("MemTotal")?;
    context.enable()?;
    context.hoard(0, u64::from(MACHINE_MIB) * MIB, 256 * MIB)?;
    // Killed as soon as the first block is offline.
    let state = context.machine.check(
        "gaol cell create large.toml >/dev/null 2>&1 & pid=$!; \
         while ! grep -q 'held\\|used' /sys/devices/gaol/memory_blocks; do kill -0 $pid || break; done; \
         kill -9 $pid; wait $pid; cat /sys/devices/gaol/memory_blocks",
    )?;
    ensure!(
        state.contains("idle") || state.contains("used"),
        "nothing was offline when the command was killed: {state:?}"
    );
    context.end_hoard()?;
    // Where the kill came too late there is a cell.
    context.machine.run("gaol cell destroy large")?;
    context.machine.gaol("cell list")?;
    context.disable()?;
    context.all_memory_is_back(total)
}
