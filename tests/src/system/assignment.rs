//! A network card that Linux uses goes to a cell, and comes back: Linux has its address, its link, its interrupts and its
//! packets again. And whatever it takes to give a function away is there again afterwards, a thousand times.
//!
//! That is shown behind an IOMMU, which has the cell's device reach the cell's memory and interrupts only, and the way
//! there and back without one as well.
//!
//! The card is the `e1000e` of the stock kernel's driver, and the emulator's user network is at the other end of its wire.

use anyhow::{Context as _, Result, ensure};

use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::machine::{Platform, Spec};
use crate::qemu::Iommu;
use crate::runner::{Check, Except, Group};

/// The card, and the device that does DMA on command.
const CARD: &str = "0000:00:03.0";
const EDU: &str = "0000:00:04.0";
/// Creations of a cell with a device.
const CYCLES: u32 = 1000;
/// The same with the card, which Linux' driver takes back each time.
const CYCLES_WITH_DRIVER: u32 = 20;
/// How many of them are made by one command.
const BATCH: u32 = 50;

const NO_CARD: &str =
    "Bochs has no network card with messages and a wire that Linux' driver can use";

pub(super) const GROUP: Group = Group {
    name: "assignment",
    machine: |spec| Ok(with_card(spec)),
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[Except::group(Platform::Bochs, NO_CARD)],
    checks: &[
        Check {
            name: "a-card-in-use-goes-to-a-cell-and-back",
            run: |context| there_and_back(context, ""),
        },
        Check {
            name: "a-creation-that-fails-gives-it-back",
            run: refused,
        },
        Check {
            name: "a-thousand-cells-with-a-device-leave-nothing",
            run: cycles,
        },
    ],
};

pub(super) const WITHOUT_IOMMU: Group = Group {
    name: "assignment-without-iommu",
    machine: |spec| {
        let mut spec = with_card(spec);
        spec.qemu.iommu = Iommu::None;
        Ok(spec)
    },
    prepare: |context| {
        load_modules(context)?;
        // The file of the usual machine describes one with an IOMMU.
        context.machine.gaol("enable").map(drop)
    },
    except: &[Except::group(Platform::Bochs, NO_CARD)],
    checks: &[Check {
        name: "a-card-in-use-goes-to-a-cell-and-back",
        run: |context| there_and_back(context, "unprotected-dma = true"),
    }],
};

/// A function behind a bridge to conventional PCI, and one that is not.
const SPOKEN_FOR: &str = "0000:01:01.0";

pub(super) const BEHIND_A_BRIDGE: Group = Group {
    name: "assignment-behind-a-bridge",
    machine: |mut spec| {
        for device in [
            "pcie-pci-bridge,id=bridge,bus=pcie.0,addr=8",
            "edu,bus=bridge,addr=1,dma_mask=0xffffffff",
        ] {
            spec.qemu
                .arguments
                .extend(["-device".to_owned(), device.to_owned()]);
        }
        Ok(spec)
    },
    prepare: load_modules,
    except: &[Except::group(
        Platform::Bochs,
        "Bochs has no IOMMU, which could take one function for another",
    )],
    checks: &[Check {
        name: "a-function-that-a-bridge-speaks-for-goes-to-no-cell",
        run: spoken_for,
    }],
};

/// A machine with a card that Linux' driver can use.
fn with_card(mut spec: Spec) -> Spec {
    spec.qemu.network = Some("user".to_owned());
    spec.modules.push("e1000e".to_owned());
    spec
}

/// What Linux has of the card.
#[derive(Debug, PartialEq)]
struct Used {
    /// Its hardware address.
    address: String,
    driver: String,
}

fn driver(context: &mut Context) -> Result<String> {
    let link = format!("readlink /sys/bus/pci/devices/{CARD}/driver || echo none");
    let text = context.machine.check(&link)?;
    Ok(text
        .trim()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// Interrupts of the card that Linux has counted.
fn interrupts(context: &mut Context, name: &str) -> Result<u64> {
    let text = context
        .machine
        .check(&format!("grep {name} /proc/interrupts"))?;
    let counts = text
        .split_whitespace()
        .filter_map(|word| word.parse::<u64>().ok());
    Ok(counts.sum())
}

/// Lets Linux use the card: it has a link, the other end answers, and its interrupts come.
fn use_card(context: &mut Context) -> Result<Used> {
    let mut name = String::new();
    for _ in 0..100 {
        let text = context.machine.check(&format!(
            "ls /sys/bus/pci/devices/{CARD}/net 2>/dev/null; :"
        ))?;
        name = text.trim().to_owned();
        if !name.is_empty() {
            break;
        }
        context.machine.check("sleep 0.1")?;
    }
    ensure!(
        !name.is_empty(),
        "Linux has no network interface for the card"
    );
    let address = context
        .machine
        .check(&format!("cat /sys/class/net/{name}/address"))?;
    context.machine.check(&format!(
        "ifconfig {name} 10.0.2.15 netmask 255.255.255.0 up"
    ))?;
    let carrier = format!(
        "for i in $(seq 100); do [ \"$(cat /sys/class/net/{name}/carrier)\" = 1 ] && break; sleep 0.1; done; cat /sys/class/net/{name}/carrier"
    );
    ensure!(context.machine.check(&carrier)?.trim() == "1", "no link");
    let before = interrupts(context, &name)?;
    let text = context.machine.check("ping -c 3 -W 10 10.0.2.2")?;
    ensure!(text.contains(" 0% packet loss"), "{text}");
    ensure!(
        interrupts(context, &name)? > before,
        "its interrupts do not come"
    );
    Ok(Used {
        address: address.trim().to_owned(),
        driver: driver(context)?,
    })
}

/// A cell with the card as it is described, where its registers are.
fn write_cell(context: &mut Context, keys: &str) -> Result<()> {
    let text = format!(
        "name = \"card\"\ncpus = [2]\nconsole = true\n{keys}\n\
         [[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"1 MiB\"\naccess = \"rwx\"\nloadable = true\n\n\
         [[memory]]\nname = \"communication\"\nkind = \"communication\"\nat = 0x100000\n\n\
         [[memory]]\nname = \"frames\"\nat = 0x200000\nsize = \"512 KiB\"\ndma = true\n\n\
         [[memory]]\nname = \"registers\"\nkind = \"device\"\nat = 0xfeb40000\nphysical = 0xfeb40000\nsize = \"128 KiB\"\n\n\
         [[memory]]\nname = \"messages\"\nkind = \"device\"\nat = 0xfeb90000\nphysical = 0xfeb90000\nsize = \"16 KiB\"\n\n\
         [[devices]]\naddress = \"{CARD}\"\n"
    );
    context
        .machine
        .write_file("/root/card.toml", text.as_bytes())
}

/// What cells have of the IOMMUs: functions, interrupt entries and domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    functions: u64,
    entries: u64,
    domains: u64,
}

/// Asserts that all units work and stopped nothing, and that there are as many as the machine has.
fn taken(context: &mut Context, has_iommu: bool) -> Result<Taken> {
    let list = context.machine.gaol("cell list")?;
    let figures = &list["iommus"];
    let get = |key: &str| {
        let figure = figures[key].as_u64();
        figure.with_context(|| format!("no {key}: {figures}"))
    };
    let units = u64::from(has_iommu);
    ensure!(
        get("units")? == units && get("remapping")? == units,
        "{figures}"
    );
    for key in ["failed", "faults", "lost"] {
        ensure!(get(key)? == 0, "{figures}");
    }
    Ok(Taken {
        functions: get("functions")?,
        entries: get("entries")?,
        domains: get("domains")?,
    })
}

const NOTHING: Taken = Taken {
    functions: 0,
    entries: 0,
    domains: 0,
};

/// `keys`: what the cell's file says besides, where no IOMMU holds the card.
fn there_and_back(context: &mut Context, keys: &str) -> Result<()> {
    let has_iommu = keys.is_empty();
    let before = use_card(context)?;
    ensure!(before.driver == "e1000e", "{before:?}");
    ensure!(taken(context, has_iommu)? == NOTHING);
    write_cell(context, keys)?;
    for mode in ["poll", "msi", "msix"] {
        context.start_cell_with("card", "net", &format!("mode={mode} device=00:03.0"))?;
        context.wait_console("net: ready")?;
        ensure!(driver(context)? == "gaol");
        let held = context
            .machine
            .check("cat /sys/devices/gaol/pci_functions")?;
        ensure!(held.trim() == format!("{CARD} e1000e held card"), "{held}");
        let vendor = format!("od -An -tx1 -N2 /sys/bus/pci/devices/{CARD}/config");
        let vendor = context.machine.check(&vendor)?;
        ensure!(
            vendor.split_whitespace().all(|byte| byte == "ff"),
            "the root sees the card: {vendor}"
        );
        ensure!(context.cell_state("card")? == "running");
        let has = taken(context, has_iommu)?;
        ensure!(
            match has_iommu {
                true => has.functions == 1 && has.domains == 1 && has.entries > 0,
                false => has == NOTHING,
            },
            "{has:?}"
        );
        // Left running: nobody asks the cell.
        context.machine.gaol("cell destroy card --force")?;
        let after = use_card(context)?;
        ensure!(before == after, "{before:?} {after:?}");
        ensure!(taken(context, has_iommu)? == NOTHING);
    }
    context.machine.linux_is_well(CPUS)
}

fn refused(context: &mut Context) -> Result<()> {
    let before = use_card(context)?;
    write_cell(context, "")?;
    // The hypervisor refuses it when the module has taken the card already: another cell has the line.
    let text = context.machine.check("cat /root/card.toml")?;
    let other = text.replace("cpus = [2]", "cpus = [2]\nreset-address = 0x900000");
    context
        .machine
        .write_file("/root/card.toml", other.as_bytes())?;
    let output = context
        .machine
        .run("gaol cell create card.toml --unchecked")?;
    ensure!(output.status == 1, "{}", output.stdout);
    let after = use_card(context)?;
    ensure!(before == after, "{before:?} {after:?}");
    ensure!(taken(context, true)? == NOTHING);
    context.machine.linux_is_well(CPUS)
}

/// A cell with a device that does DMA on command, and `keys` below it.
fn write_edu(context: &mut Context, function: &str, keys: &str) -> Result<()> {
    let text = format!(
        "name = \"edu\"\ncpus = [2]\n\n\
         [[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"64 KiB\"\naccess = \"rwx\"\ndma = true\n\n\
         [[devices]]\naddress = \"{function}\"\n{keys}\n"
    );
    context
        .machine
        .write_file("/root/edu.toml", text.as_bytes())
}

/// The command refuses it by the description of the machine, and the hypervisor also when that says nothing of it.
fn spoken_for(context: &mut Context) -> Result<()> {
    const REASON: &str = "is behind a bridge to conventional PCI";
    const KEY: &str = "shares-requester-id = true";
    context
        .machine
        .gaol("config create -o /tmp/own.toml --force 2>/dev/null")?;
    let told = context
        .machine
        .check(&format!("grep -F '{KEY}' /tmp/own.toml"))?;
    ensure!(
        told.lines().count() == 1 && told.contains(SPOKEN_FOR),
        "{told}"
    );
    context.machine.check(&format!(
        "sed 's/, {KEY}//' /tmp/own.toml >/tmp/silent.toml"
    ))?;
    for system in ["own", "silent"] {
        context
            .machine
            .gaol(&format!("enable /tmp/{system}.toml"))?;
        write_edu(context, SPOKEN_FOR, "")?;
        for option in ["", "--unchecked"] {
            let create = format!("cell create edu.toml {option}");
            context.machine.refused(&create, REASON)?;
        }
        let checked = format!("config check /tmp/{system}.toml edu.toml");
        match system {
            "own" => context.machine.refused(&checked, REASON).map(drop)?,
            _ => context.machine.gaol(&checked).map(drop)?,
        }
        ensure!(taken(context, true)? == NOTHING);
        // It may have its registers; and another one goes to a cell as ever.
        for (function, keys, functions) in [(SPOKEN_FOR, "bus-master = false", 1), (EDU, "", 1)] {
            write_edu(context, function, keys)?;
            context.machine.gaol("cell create edu.toml")?;
            ensure!(taken(context, true)?.functions == functions);
            context.machine.gaol("cell destroy edu")?;
        }
        ensure!(taken(context, true)? == NOTHING);
        context.disable()?;
    }
    context.machine.linux_is_well(CPUS)
}

/// What must be the same before and after.
fn used(context: &mut Context) -> Result<(u64, Taken, String)> {
    let list = context.machine.gaol("cell list")?;
    let frames = list["pool_used"].as_u64().context("no pool")?;
    let functions = context
        .machine
        .check("cat /sys/devices/gaol/pci_functions")?;
    Ok((frames, taken(context, true)?, functions))
}

fn repeat(context: &mut Context, cell: &str, count: u32) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH);
        context.machine.check(&format!(
            "for i in $(seq {batch}); do gaol cell create {cell}.toml >/dev/null && gaol cell destroy {cell} >/dev/null || {{ echo failed; break; }}; done | grep -c failed | grep -qx 0"
        ))?;
        left -= batch;
    }
    Ok(())
}

fn cycles(context: &mut Context) -> Result<()> {
    write_edu(context, EDU, "")?;
    write_cell(context, "")?;
    let card = use_card(context)?;
    // The first of each kind may leave what the next ones find.
    repeat(context, "edu", 1)?;
    repeat(context, "card", 1)?;
    let before = used(context)?;
    repeat(context, "edu", CYCLES)?;
    repeat(context, "card", CYCLES_WITH_DRIVER)?;
    let after = used(context)?;
    ensure!(before == after, "{before:?} before, {after:?} after");
    ensure!(after.1 == NOTHING, "{after:?}");
    println!(
        "assignment: {CYCLES} cells with a device, {CYCLES_WITH_DRIVER} with the card: {after:?} before and after"
    );
    let again = use_card(context)?;
    ensure!(card == again, "{card:?} {again:?}");
    context.machine.linux_is_well(CPUS)
}
