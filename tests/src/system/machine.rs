//! The machine itself: what every other test takes for granted.

use anyhow::{Result, ensure};

use super::Context;
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "machine",
    machine: |spec| Ok(spec.module("msr")),
    prepare: |_| Ok(()),
    checks: &[
        Check {
            name: "stock-linux-with-four-cpus",
            run: stock_linux,
        },
        Check {
            name: "processor-offers-vmx",
            run: processor_offers_vmx,
        },
        Check {
            name: "commands-report-output-and-status",
            run: commands,
        },
    ],
};

fn stock_linux(context: &mut Context) -> Result<()> {
    let release = context.machine.check("uname -r")?;
    ensure!(
        release.trim() == context.machine.release(),
        "it runs {release}"
    );
    context.machine.linux_is_well(4)
}

fn processor_offers_vmx(context: &mut Context) -> Result<()> {
    let flags = context
        .machine
        .check("grep -c '^flags.* vmx ' /proc/cpuinfo")?;
    ensure!(flags.trim() == "4", "only {} CPUs offer VMX", flags.trim());
    Ok(())
}

fn commands(context: &mut Context) -> Result<()> {
    let output = context.machine.run("echo one; echo two >&2; exit 7")?;
    ensure!(output.status == 7, "status {}", output.status);
    ensure!(output.stdout == "one\ntwo\n", "output {:?}", output.stdout);
    let content: Vec<u8> = (0..=255).cycle().take(2000).collect();
    context.machine.write_file("/tmp/bytes", &content)?;
    let sum = context
        .machine
        .check("wc -c </tmp/bytes; tail -c 1 /tmp/bytes | hexdump -e '1/1 \"%02x\"'")?;
    ensure!(sum == format!("2000\n{:02x}", content[1999]), "sum {sum:?}");
    Ok(())
}
