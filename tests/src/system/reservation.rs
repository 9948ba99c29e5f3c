//! Memory that was reserved when Linux was booted, rather than taken from it.

use anyhow::{Result, ensure};

use super::{Context, load_modules};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

/// Where, and how much.
const ADDRESS: u64 = 0x1000_0000;
const SIZE_MIB: u64 = 8;

pub(super) const GROUP: Group = Group {
    name: "reservation",
    machine: |spec| {
        let mut spec = spec.content(
            "root/reserved.toml",
            format!(
                "name = \"reserved\"\n[hypervisor]\nmemory = \"4 MiB\"\naddress = {ADDRESS:#x}\n"
            ),
        );
        spec.command_line = format!("memmap={SIZE_MIB}M${ADDRESS:#x}");
        Ok(spec)
    },
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "reserved-memory-is-used",
            run: reserved,
        },
        Check {
            name: "memory-that-is-not-reserved-is-refused",
            run: not_reserved,
        },
    ],
};

fn reserved(context: &mut Context) -> Result<()> {
    context.machine.gaol("enable reserved.toml")?;
    let (physical, size) = context.region()?;
    ensure!(
        physical == ADDRESS && size == 4 << 20,
        "the hypervisor is at {physical:#x} with {size:#x} bytes"
    );
    context.start_cell("hello", "every=100ms")?;
    context.wait_console("hello: ")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}

fn not_reserved(context: &mut Context) -> Result<()> {
    let elsewhere = ADDRESS + (SIZE_MIB << 20);
    context.machine.check(&format!(
        "sed 's/^address.*/address = {elsewhere:#x}/' reserved.toml >/tmp/elsewhere.toml"
    ))?;
    context
        .machine
        .refused("enable /tmp/elsewhere.toml", "memmap=4M$")?;
    Ok(())
}
