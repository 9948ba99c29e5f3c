//! How a machine is described to QEMU, which runs it on the host's own VMX where that is offered, or emulates all of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::machine::{Platform, SECOND_SERIAL, Spec};

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

/// The command that runs the machine in `directory`, which connects its first serial port to `port` of this host.
pub(crate) fn command(
    spec: &Spec,
    directory: &Path,
    kernel: &Path,
    initrd: &[u8],
    command_line: &str,
    port: u16,
) -> Result<Command> {
    let path = directory.join(INITRD);
    fs::write(&path, initrd).with_context(|| format!("cannot write {}", path.display()))?;
    let output = fs::File::create(directory.join("qemu.out"))?;
    // Ended by the kernel when this process dies, however it does.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(platform(spec))
        .args(devices(spec))
        .args(["-smp", &spec.cpus.to_string()])
        .args(["-m", &format!("{}M", spec.memory_mib)])
        .arg("-kernel")
        .arg(kernel)
        .args(["-initrd", INITRD, "-append", command_line])
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
fn devices(spec: &Spec) -> Vec<String> {
    let hardware = &spec.qemu;
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
    if spec.network_card {
        device("e1000,addr=5");
    }
    if let Some(wire) = &hardware.network {
        match wire.as_str() {
            "" => device("e1000e,addr=3"),
            wire => {
                device("e1000e,addr=3,netdev=wire");
                arguments.extend(["-netdev".to_owned(), format!("{wire},id=wire")]);
            }
        }
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
        [platform(spec), devices(spec)].concat().join(" ")
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
}
