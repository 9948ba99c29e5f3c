//! The machine itself: what every other test takes for granted.

use anyhow::{Result, anyhow, ensure};
use gaol_abi::image::Vendor;
use gaol_machine::Source;
use gaol_machine::source::Tree;

use super::Context;
use crate::artefacts::workspace_root;
use crate::gaol::Gaol;
use crate::machine::Platform;
use crate::runner::{Check, Except, Group};

pub(super) const GROUP: Group = Group {
    name: "machine",
    machine: |spec| Ok(spec.module("msr")),
    prepare: |_| Ok(()),
    except: &[Except::check(
        Platform::Qemu,
        "a-collection-reads-like-the-machine",
        "the collection that is kept is of a QEMU with other devices",
    )],
    checks: &[
        Check {
            name: "stock-linux-with-four-cpus",
            run: stock_linux,
        },
        Check {
            name: "processors-offer-virtualization",
            run: processors_offer_virtualization,
        },
        Check {
            name: "commands-report-output-and-status",
            run: commands,
        },
        Check {
            name: "a-collection-reads-like-the-machine",
            run: collection,
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

fn processors_offer_virtualization(context: &mut Context) -> Result<()> {
    let flag = match context.platform.vendor() {
        Vendor::Svm => "svm( .*)? npt",
        _ => "vmx",
    };
    let flags = context
        .machine
        .check(&format!("grep -cE '^flags.* {flag}( |$)' /proc/cpuinfo; :"))?;
    ensure!(flags.trim() == "4", "{} CPUs offer {flag}", flags.trim());
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

/// What the command collects here says what the committed collection of this machine says.
fn collection(context: &mut Context) -> Result<()> {
    let file = "/tmp/machine.tar.gz";
    context
        .machine
        .check(&format!("gaol config collect --force -o {file}"))?;
    let digits = context
        .machine
        .check(&format!("hexdump -v -e '1/1 \"%02x\"' {file}"))?;
    let pairs = digits.trim().as_bytes().as_chunks::<2>().0;
    let bytes: Result<Vec<u8>, _> = pairs
        .iter()
        .map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16))
        .collect();
    let collected = Source::tree(Tree::read_tar(file, bytes?.as_slice())?);
    let path = workspace_root().join("machine/collections/bochs-i440fx.tar.gz");
    let [here, committed] = [collected, Source::open(&path)?].map(|source| {
        let machine = gaol_machine::Machine::read(&source);
        machine.map_err(|problems| anyhow!("{}", problems[0]))
    });
    let (here, committed) = (here?.to_string(), committed?.to_string());
    ensure!(here == committed, "it says\n{here}instead of\n{committed}");
    Ok(())
}
