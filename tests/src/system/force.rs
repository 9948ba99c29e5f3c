//! Cells in any state end by force, and one that does not answer holds nobody else up.

use anyhow::{Result, ensure};
use gaol_abi::image::Vendor;

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

/// Programs of a few bytes that every CPU of the cell runs from its start in real mode, with interrupts off.
const PROGRAMS: [(&str, &[u8]); 7] = [
    // cli; jmp $
    ("spin", b"\xfa\xeb\xfe"),
    // cli; hlt; jmp to hlt
    ("halt", b"\xfa\xf4\xeb\xfd"),
    // cpuid; jmp to it
    ("exits", b"\x0f\xa2\xeb\xfc"),
    // mov eax, 5; vmcall; jmp to the start
    ("hypercalls", b"\x66\xb8\x05\0\0\0\x0f\x01\xc1\xeb\xf5"),
    // mov ecx, 0x830; mov eax, 0x44041; xor edx, edx; wrmsr; jmp to wrmsr: fixed interrupts to itself
    (
        "interrupts",
        b"\x66\xb9\x30\x08\0\0\x66\xb8\x41\x40\x04\0\x66\x31\xd2\x0f\x30\xeb\xfc",
    ),
    // The same with NMIs to all others
    (
        "nmis",
        b"\x66\xb9\x30\x08\0\0\x66\xb8\0\x44\x0c\0\x66\x31\xd2\x0f\x30\xeb\xfc",
    ),
    // The same with INITs to all others, which wait for a startup IPI then
    (
        "inits",
        b"\x66\xb9\x30\x08\0\0\x66\xb8\0\x45\x0c\0\x66\x31\xd2\x0f\x30\xeb\xfc",
    ),
];

/// The program as the CPU understands it: VMMCALL in place of VMCALL on AMD's.
fn of_vendor(vendor: Vendor, program: &[u8]) -> Vec<u8> {
    const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
    const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
    let mut program = program.to_vec();
    let at = program.windows(3).position(|bytes| bytes == VMCALL);
    if let (Some(at), Vendor::Svm) = (at, vendor) {
        program[at..at + 3].copy_from_slice(&VMMCALL);
    }
    program
}

pub(super) const GROUP: Group = Group {
    name: "force",
    machine: |spec| {
        let spec = usual(spec)?
            .content(
                "root/pair.toml",
                "name = \"pair\"\ncpus = [2, 3]\n\
                 [[memory]]\nname = \"ram\"\nat = 0\nsize = \"1 MiB\"\naccess = \"rwx\"\nloadable = true\n\
                 [[memory]]\nname = \"comm\"\nkind = \"communication\"\nat = 0x100000\n",
            )
            .content(
                "root/patient.toml",
                "name = \"patient\"\ncpus = [2]\nconsole = true\nshutdown-timeout = \"10 min\"\n\
                 [[memory]]\nname = \"ram\"\nat = 0\nsize = \"1 MiB\"\naccess = \"rwx\"\nloadable = true\n\
                 [[memory]]\nname = \"comm\"\nkind = \"communication\"\nat = 0x100000\n",
            );
        let vendor = spec.platform.vendor();
        Ok(PROGRAMS.iter().fold(spec, |spec, (name, program)| {
            spec.content(&format!("root/{name}.raw"), of_vendor(vendor, program))
        }))
    },
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[],
    checks: &[
        Check {
            name: "whatever-its-cpus-do",
            run: matrix,
        },
        Check {
            name: "a-cell-that-does-not-answer-holds-nobody-up",
            run: unanswered,
        },
        Check {
            name: "a-locked-cell-keeps-out-those-who-use-no-force",
            run: locked,
        },
        Check {
            name: "the-longest-pauses-are-told",
            run: pauses,
        },
    ],
};

fn matrix(context: &mut Context) -> Result<()> {
    for (name, _) in PROGRAMS {
        context.machine.gaol("cell create pair.toml")?;
        context
            .machine
            .gaol(&format!("cell load pair {name}.raw"))?;
        context.machine.gaol("cell start pair")?;
        context.machine.check("sleep 0.1")?;
        context.machine.gaol("cell list")?;
        context.machine.gaol("cell shutdown pair --force")?;
        context.wait_state("pair", "shut down")?;
        context
            .machine
            .gaol(&format!("cell load pair {name}.raw"))?;
        context.machine.gaol("cell start pair")?;
        context.machine.check("sleep 0.1")?;
        context.machine.gaol("cell destroy pair --force")?;
        context.machine.linux_is_well(CPUS)?;
    }
    Ok(())
}

fn unanswered(context: &mut Context) -> Result<()> {
    context.start_cell_with("patient", "violator", "do=silent")?;
    context.wait_console("violator: do silent")?;
    context
        .machine
        .check("(gaol cell destroy patient >/tmp/asked 2>&1; echo status $? >>/tmp/asked) >/dev/null 2>&1 &")?;
    context.machine.check("sleep 1")?;
    // The cell has ten minutes to answer. Meanwhile everything else goes on.
    context.start_cell("latency", "period=1ms ticks=50")?;
    context.wait_console("latency: 50 ticks done")?;
    context.machine.gaol("cell destroy latency")?;
    let asked = context.machine.check("cat /tmp/asked")?;
    ensure!(asked.is_empty(), "the cell was not waited for: {asked}");
    context.machine.gaol("cell destroy patient --force")?;
    for _ in 0..50 {
        let asked = context.machine.check("cat /tmp/asked")?;
        if asked.contains("status 1") {
            ensure!(
                asked.contains("there is no cell"),
                "it was told something else: {asked}"
            );
            return context.machine.linux_is_well(CPUS);
        }
        context.machine.check("sleep 0.2")?;
    }
    anyhow::bail!("who has asked the cell still waits")
}

fn locked(context: &mut Context) -> Result<()> {
    context.start_cell_with("deny", "violator", "do=deny lock=1")?;
    context.wait_console("violator: locked")?;
    context
        .machine
        .refused("cell create latency.toml", "locked")?;
    context.machine.gaol("cell create latency.toml --force")?;
    context.machine.refused("cell destroy latency", "locked")?;
    context.machine.gaol("cell destroy latency --force")?;
    context.machine.refused("cell shutdown deny", "locked")?;
    context.machine.gaol("cell shutdown deny --force")?;
    context.machine.gaol("cell destroy deny")?;
    context.machine.linux_is_well(CPUS)
}

fn pauses(context: &mut Context) -> Result<()> {
    let pauses = context.machine.longest_pauses()?;
    for name in [
        "create",
        "start",
        "set_loadable",
        "destroy",
        "scrub",
        "look",
        "kick",
    ] {
        ensure!(
            pauses.get(name).is_some_and(|cycles| *cycles != 0),
            "nothing is told of {name}: {pauses:?}"
        );
    }
    Ok(())
}
