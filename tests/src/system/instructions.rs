//! Instructions and events that the hypervisor has a hand in: in a cell they work as on bare hardware, or stop that cell.

use anyhow::{Result, ensure};

use super::violations::{end, parked, start, survives};
use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::machine::Platform;
use crate::runner::{Check, Except, Group};

pub(super) const GROUP: Group = Group {
    name: "instructions",
    machine: |spec| Ok(spec.content("root/task-switch.bin", task_switch())),
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[Except::check(
        Platform::Qemu,
        "a-task-switch-stops-the-cell",
        "QEMU has no intercept of task switches",
    )],
    checks: &[
        Check {
            name: "a-cells-registers-and-single-steps-work",
            run: processor,
        },
        Check {
            name: "a-cell-receives-its-own-nmis",
            run: own_nmis,
        },
        Check {
            name: "a-cell-receives-no-nmi-of-others",
            run: foreign_nmis,
        },
        Check {
            name: "an-exception-without-a-stack-stops-the-cell",
            run: |context| parked(context, "bad-stack address=0x40000000", &[0x3fff_fff8]),
        },
        Check {
            name: "a-task-switch-stops-the-cell",
            run: task_switch_stops,
        },
    ],
};

/// What QEMU's processors don't do on bare hardware either: INT1 raises #UD there, and there is no general detect.
const NOT_ON_QEMU: [&str; 3] = ["int1", "general detect", "int1 behind mov ss"];

fn processor(context: &mut Context) -> Result<()> {
    let said = survives(context, "processor")?;
    let is_emulators = |line: &str| {
        context.platform == Platform::Qemu
            && NOT_ON_QEMU
                .iter()
                .any(|what| line.contains(&format!("violator: {what}: ")))
    };
    let wrong: Vec<&str> = said
        .lines()
        .filter(|line| line.trim_end().ends_with("wrong") && !is_emulators(line))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    let right = said
        .lines()
        .filter(|line| line.trim_end().ends_with("right"))
        .count();
    ensure!(right >= 65, "only {right} things were tried: {said}");
    Ok(())
}

fn own_nmis(context: &mut Context) -> Result<()> {
    let said = survives(context, "nmi")?;
    ensure!(
        said.contains("violator: 5 of 5 NMIs received"),
        "its own NMIs do not all arrive: {said}"
    );
    Ok(())
}

/// Linux sends NMIs to the cell's CPU; one that came through would end the cell.
fn foreign_nmis(context: &mut Context) -> Result<()> {
    const CELLS_CPU: u32 = 2;
    const NMI: u32 = 4 << 8 | 1 << 14;
    start(context, "vmx")?;
    context.wait_console("violator: survived")?;
    let dropped = |context: &mut Context| context.machine.part("root", "dropped_ipis");
    let before = dropped(context)?;
    for _ in 0..3 {
        context.poke(&format!("icr {CELLS_CPU:x} {NMI:x}"))?;
    }
    let after = dropped(context)?;
    ensure!(
        after >= before + 3,
        "{before} dropped interrupts became {after}"
    );
    let state = context.cell_state("violator")?;
    ensure!(state.contains("running"), "the cell is {state}");
    let console = context.machine.check("gaol console")?;
    ensure!(!console.contains("exception 2"), "an NMI came through");
    end(context)
}

/// A cell without the runtime: from real mode to 32-bit protected mode, and a jump to a task.
fn task_switch() -> Vec<u8> {
    const PROTECTED_CODE: usize = 0x20;
    const TABLE_POINTER: usize = 0x40;
    const TABLE: usize = 0x48;
    let real_mode: &[u8] = &[
        0xfa, // cli
        0x0f,
        0x01,
        0x16,
        TABLE_POINTER as u8,
        0x00, // lgdt
        0x66,
        0xb8,
        0x31,
        0x00,
        0x00,
        0x00, // mov eax, PE | ET | NE
        0x0f,
        0x22,
        0xc0, // mov cr0, eax
        0x66,
        0xea,
        PROTECTED_CODE as u8,
        0x00,
        0x00,
        0x00,
        0x08,
        0x00, // jmp 8:protected
    ];
    let protected_mode: &[u8] = &[
        0xb8, 0x10, 0x00, 0x00, 0x00, // mov eax, 0x10
        0x8e, 0xd8, // mov ds, eax
        0x8e, 0xd0, // mov ss, eax
        0xb8, 0x18, 0x00, 0x00, 0x00, // mov eax, 0x18
        0x0f, 0x00, 0xd8, // ltr ax
        0xea, 0x00, 0x00, 0x00, 0x00, 0x20, 0x00, // jmp 0x20:0
        0xf4, 0xeb, 0xfd, // hlt, for ever
    ];
    let table: [u64; 5] = [
        0,
        0x00cf_9b00_0000_ffff, // code
        0x00cf_9300_0000_ffff, // data
        0x0000_8900_0080_0067, // the task that runs, at 0x80
        0x0000_8900_0100_0067, // the other, at 0x100
    ];
    let mut image = vec![0; 0x400];
    image[..real_mode.len()].copy_from_slice(real_mode);
    image[PROTECTED_CODE..][..protected_mode.len()].copy_from_slice(protected_mode);
    image[TABLE_POINTER] = (8 * table.len() - 1) as u8;
    image[TABLE_POINTER + 2] = TABLE as u8;
    for (index, descriptor) in table.iter().enumerate() {
        image[TABLE + 8 * index..][..8].copy_from_slice(&descriptor.to_le_bytes());
    }
    image
}

fn task_switch_stops(context: &mut Context) -> Result<()> {
    context.machine.gaol("cell create violator.toml")?;
    context.machine.gaol("cell load violator task-switch.bin")?;
    context.machine.gaol("cell start violator")?;
    context.wait_state("violator", "failed")?;
    context.machine.linux_is_well(CPUS - 1)?;
    let list = context.machine.gaol("cell list")?.to_string();
    ensure!(list.contains("task_switch"), "the record says {list}");
    end(context)
}
