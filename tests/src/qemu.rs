//! How a machine is described to QEMU, which runs it on the host's own VMX where that is offered, or emulates all of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use gaol_wire::Link;

use crate::machine::{Platform, SECOND_SERIAL, Spec, Wired};

const INITRD: &str = "initrd";
/// What QEMU reports on the hardware it emulates: resets of CPUs and triple faults with their state, wrong accesses.
pub(crate) const LOG: &str = "qemu.log";
/// What is in that log when a CPU had a triple fault, which ends QEMU with status 0 and no word.
pub(crate) const TRIPLE_FAULT: &str = "Triple fault";

/// The usual CPU model: SVM with nested paging, and nothing else of SVM.
pub const MODEL: &str = "EPYC,+svm,+npt";

/// The IOMMU of an emulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// There is none.
    None,
    /// VT-d that remaps DMA only.
    Dma,
    /// VT-d that remaps DMA and interrupts.
    Interrupts,
}

/// What a machine on QEMU has that others do not. `configs/qemu.toml` describes the usual one.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// Its IOMMU.
    pub iommu: Iommu,
    /// Whether it has QEMU's device for teaching, which does DMA on command, anywhere in the first 4 GiB.
    pub edu: bool,
    /// The other end of the wire of its network card (`e1000e`), in the words of QEMU's `-netdev`, without an `id`; an
    /// empty one is a card without a wire.
    pub network: Option<String>,
    /// Whether each CPU has a thread of the host. They run at the same time then, and starve each other where the host
    /// has fewer cores.
    pub threads: bool,
    /// Whether the machine's time is the number of instructions, one a nanosecond. Linux hangs when it starts a second
    /// CPU by itself then (`maxcpus=1` helps).
    pub counts_instructions: bool,
    /// Whether it starts again after a reset, rather than to end.
    pub reboots: bool,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            iommu: Iommu::Interrupts,
            edu: true,
            network: Some(String::new()),
            threads: false,
            counts_instructions: false,
            reboots: false,
            arguments: Vec::new(),
        }
    }
}

/// Whether this host offers VMX to virtual machines, and if not, why.
///
/// # Errors
/// With the reason.
pub fn nested_vmx() -> std::result::Result<(), &'static str> {
    if fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Err("/dev/kvm cannot be opened");
    }
    let has_vmx = raw_cpuid::CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_vmx());
    if !has_vmx {
        return Err("the host's CPU does not offer VMX (CPUID.1:ECX.5 is clear)");
    }
    match fs::read_to_string("/sys/module/kvm_intel/parameters/nested") {
        Ok(value) if matches!(value.trim(), "Y" | "1") => Ok(()),
        _ => Err("KVM does not pass VMX on: load kvm_intel with nested=1"),
    }
}

/// What the machine boots.
pub(crate) struct Linux<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a [u8],
    pub command_line: &'a str,
}

/// The command that runs the machine in `directory`, which connects its first serial port to `port` of this host, and the
/// network card that has one to a cable.
pub(crate) fn command(
    spec: &Spec,
    directory: &Path,
    linux: &Linux<'_>,
    port: u16,
    wire: Option<&Link>,
) -> Result<Command> {
    let path = directory.join(INITRD);
    fs::write(&path, linux.initrd).with_context(|| format!("cannot write {}", path.display()))?;
    let output = fs::File::create(directory.join("qemu.out"))?;
    // Ended by the kernel when this process dies, however it does.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(platform(spec))
        .args(devices(spec, wire))
        .args(["-smp", &spec.cpus.to_string()])
        .args(["-m", &format!("{}M", spec.memory_mib)])
        .arg("-kernel")
        .arg(linux.kernel)
        .args(["-initrd", INITRD, "-append", linux.command_line])
        .args(["-display", "none", "-vga", "std"])
        .args(["-serial", &format!("tcp:127.0.0.1:{port}")])
        .args(["-serial", &format!("file:{SECOND_SERIAL}")])
        .args(["-d", "cpu_reset,guest_errors", "-D", LOG])
        .args(&spec.qemu.arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    Ok(command)
}

/// What it runs on.
fn platform(spec: &Spec) -> Vec<String> {
    let arguments: Vec<&str> = match spec.platform {
        Platform::Qemu => {
            let threads = match spec.qemu.threads {
                true => "tcg,thread=multi",
                false => "tcg,thread=single",
            };
            let mut arguments = vec!["-machine", "q35", "-accel", threads, "-cpu", &spec.model];
            if spec.qemu.counts_instructions {
                // Nothing may depend on the host's time, so that figures repeat.
                let clock = ["-rtc", "base=2026-01-01T00:00:00,clock=vm", "-seed", "1"];
                arguments.extend(["-icount", "shift=0"]);
                arguments.extend(clock);
            }
            arguments
        }
        Platform::Kvm | Platform::Bochs => {
            let machine = "q35,accel=kvm,kernel-irqchip=split";
            vec!["-machine", machine, "-cpu", "host"]
        }
    };
    arguments.into_iter().map(str::to_owned).collect()
}

/// What is plugged in.
fn devices(spec: &Spec, wire: Option<&Link>) -> Vec<String> {
    let hardware = &spec.qemu;
    let cable = |card| wire.filter(|_| spec.wired == Some(card)).map(Link::qemu);
    let mut arguments = vec!["-nic".to_owned(), "none".to_owned()];
    let mut device = |text: &str| arguments.extend(["-device".to_owned(), text.to_owned()]);
    match hardware.iommu {
        Iommu::None => {}
        Iommu::Dma => device("intel-iommu,intremap=off"),
        // With 32-bit APIC ids (`eim`), for which no emulated CPU has the x2APIC, Linux would not use it.
        Iommu::Interrupts => device("intel-iommu,intremap=on,eim=off"),
    }
    if hardware.edu {
        device("edu,addr=4,dma_mask=0xffffffff");
    }
    let mut netdev = None;
    let mut card = |model: &str, cable: Option<String>| match cable {
        None => device(model),
        Some(cable) => {
            device(&format!("{model},netdev=wire"));
            netdev = Some(format!("{cable},id=wire"));
        }
    };
    if spec.network_card {
        card("e1000,addr=5", cable(Wired::E1000));
    }
    if let Some(network) = &hardware.network {
        let other = Some(network.clone()).filter(|network| !network.is_empty());
        card("e1000e,addr=3", cable(Wired::E1000e).or(other));
    }
    if let Some(netdev) = netdev {
        arguments.extend(["-netdev".to_owned(), netdev]);
    }
    if !hardware.reboots {
        arguments.push("-no-reboot".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(spec: &Spec) -> String {
        [platform(spec), devices(spec, None)].concat().join(" ")
    }

    #[test]
    fn the_arguments_describe_the_machine() {
        let mut spec = Spec::new("name", Platform::Qemu);
        let usual = arguments(&spec);
        for part in [
            "-machine q35",
            "thread=single",
            "-cpu EPYC,+svm,+npt",
            "-device intel-iommu,intremap=on",
            "-device e1000e,addr=3",
            "-device edu,addr=4,dma_mask=0xffffffff",
            "-no-reboot",
        ] {
            assert!(usual.contains(part), "{part} is missing: {usual}");
        }
        assert!(!usual.contains("-icount") && !usual.contains("-netdev"));
        spec.qemu = Hardware {
            iommu: Iommu::Dma,
            edu: false,
            network: Some("user".to_owned()),
            threads: true,
            counts_instructions: true,
            reboots: true,
            arguments: Vec::new(),
        };
        let other = arguments(&spec);
        for part in ["thread=multi", "-icount shift=0", "intremap=off"] {
            assert!(other.contains(part), "{part} is missing: {other}");
        }
        assert!(other.contains("netdev=wire -netdev user,id=wire"));
        assert!(!other.contains("edu") && !other.contains("-no-reboot"));
        spec.qemu.iommu = Iommu::None;
        spec.qemu.network = None;
        let least = arguments(&spec);
        assert!(!least.contains("iommu") && !least.contains("e1000e"));
    }

    #[test]
    fn the_card_that_has_a_cable_is_connected() {
        let link = Link::open().unwrap();
        let mut spec = Spec::new("name", Platform::Qemu);
        spec.network_card = true;
        for (wired, part) in [
            (Wired::E1000, "e1000,addr=5,netdev=wire"),
            (Wired::E1000e, "e1000e,addr=3,netdev=wire"),
        ] {
            spec.wired = Some(wired);
            let text = devices(&spec, Some(&link)).join(" ");
            assert!(text.contains(part), "{text}");
            assert!(text.contains(&format!("-netdev {},id=wire", link.qemu())));
            assert_eq!(text.matches("netdev=wire").count(), 1, "{text}");
        }
    }
}
