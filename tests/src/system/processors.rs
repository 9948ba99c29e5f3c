//! CPUs that Linux takes offline and online, before and after the launch.

use anyhow::{Result, ensure};

use super::{CPUS, Context, SYSTEM, load_modules, usual};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "processors",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "offline-before-enable-is-refused",
            run: offline_before,
        },
        Check {
            name: "offline-and-online-after-enable",
            run: offline_after,
        },
        Check {
            name: "disable-with-a-cpu-offline",
            run: disable_with_offline,
        },
        Check {
            name: "linux-may-not-take-a-cells-cpu",
            run: cell_cpu_stays,
        },
        Check {
            name: "a-cells-cpu-comes-back",
            run: cell_cpu_comes_back,
        },
        Check {
            name: "a-cpu-that-linux-does-not-take-back-waits",
            run: cpu_waits,
        },
        Check {
            name: "a-cell-of-a-cpu-that-linux-took-offline-is-refused",
            run: cell_of_offline_cpu,
        },
    ],
};

fn set_online(context: &mut Context, cpu: u32, online: bool) -> Result<()> {
    context.machine.check(&format!(
        "echo {} >/sys/devices/system/cpu/cpu{cpu}/online",
        u8::from(online)
    ))?;
    Ok(())
}

fn offline_before(context: &mut Context) -> Result<()> {
    set_online(context, 3, false)?;
    context
        .machine
        .refused(&format!("enable {SYSTEM}"), "CPU 3 is offline")?;
    context.machine.linux_is_well(CPUS - 1)?;
    set_online(context, 3, true)?;
    context.enable()?;
    context.disable()
}

fn offline_after(context: &mut Context) -> Result<()> {
    context.enable()?;
    for _ in 0..3 {
        for cpu in 1..CPUS {
            set_online(context, cpu, false)?;
            context.machine.linux_is_well(CPUS - 1)?;
            set_online(context, cpu, true)?;
            context
                .machine
                .check(&format!("taskset {:x} true", 1 << cpu))?;
        }
    }
    context.disable()
}

fn disable_with_offline(context: &mut Context) -> Result<()> {
    context.enable()?;
    set_online(context, 2, false)?;
    context.machine.gaol("disable")?;
    context.machine.linux_is_well(CPUS - 1)?;
    set_online(context, 2, true)?;
    context.machine.linux_is_well(CPUS)?;
    context.enable()?;
    context.disable()
}

fn cell_cpu_stays(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "every=200ms")?;
    context.machine.linux_is_well(CPUS - 1)?;
    let output = context
        .machine
        .run("echo 1 >/sys/devices/system/cpu/cpu2/online")?;
    ensure!(output.status != 0, "Linux took the cell's CPU");
    context.machine.linux_is_well(CPUS - 1)?;
    ensure!(
        context.cell_state("hello")?.starts_with("running"),
        "the cell does not run any more"
    );
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}

fn cell_cpu_comes_back(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "every=200ms")?;
    context.machine.gaol("cell destroy hello")?;
    context.machine.linux_is_well(CPUS)?;
    // Its timer and its interrupts work: a sleep on it ends.
    context.machine.check("taskset 4 sleep 0.2")?;
    context.disable()
}

/// It waits to be started, whatever wakes it meanwhile: a CPU that ran from its reset vector would do to the machine what
/// firmware does first. Firmware's first exception leads here to code that leaves a mark.
fn cpu_waits(context: &mut Context) -> Result<()> {
    const HELD: &str = "/sys/module/gaol_test/parameters/held_cpu";
    const POKE: &str = "/proc/gaol-test/poke";
    /// Below 4 KiB, where Linux keeps nothing: `lock inc word [cs:0x6f0]` and `iret`.
    const CODE: u32 = 0x600;
    const INSTRUCTIONS: u64 = 0x00cf_06f0_06ff_2ef0;
    const MARK: u32 = 0x6f0;
    context.enable()?;
    context.start_cell("hello", "every=200ms")?;
    for (address, value) in [(CODE, INSTRUCTIONS), (MARK, 0)] {
        context.poke(&format!("w64 {address:x} {value:x}"))?;
    }
    context.machine.check(&format!(
        "for vector in $(seq 0 255); do printf 'w32 %x {CODE:x}' $((4 * vector)) >{POKE} || exit 1; done"
    ))?;
    context.machine.check(&format!("echo 2 >{HELD}"))?;
    context
        .machine
        .refused("cell destroy hello", "could not bring CPU 2 back")?;
    // Each of these has all CPUs of the root drop translations.
    for _ in 0..2 {
        context.machine.gaol("cell create latency.toml")?;
        context.machine.gaol("cell destroy latency")?;
        context.machine.linux_is_well(CPUS - 1)?;
    }
    context.machine.check("sleep 1")?;
    let mark = context.poke(&format!("r16 {MARK:x}"))?;
    ensure!(mark == Some(0), "CPU 2 has run: {mark:x?}");
    context.machine.check(&format!("echo -1 >{HELD}"))?;
    context.disable()
}

/// Linux would not know that the CPU is to come back, and `disable` could not leave it anywhere.
fn cell_of_offline_cpu(context: &mut Context) -> Result<()> {
    context.enable()?;
    set_online(context, 2, false)?;
    context
        .machine
        .refused("cell create hello.toml", "CPU 2 is offline")?;
    set_online(context, 2, true)?;
    context.start_cell("hello", "every=200ms")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}
