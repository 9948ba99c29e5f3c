//! How a machine is described to QEMU, which runs it on the host's own VMX where that is offered, or emulates all of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::machine::{Platform, SECOND_SERIAL, Spec};

const INITRD: &str = "initrd";

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
        .args(["-smp", &spec.cpus.to_string()])
        .args(["-m", &format!("{}M", spec.memory_mib)])
        .arg("-kernel")
        .arg(kernel)
        .args(["-initrd", INITRD, "-append", command_line])
        .args(["-display", "none", "-no-reboot"])
        .args(["-serial", &format!("tcp:127.0.0.1:{port}")])
        .args(["-serial", &format!("file:{SECOND_SERIAL}")])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    Ok(command)
}

/// What it runs on.
fn platform(spec: &Spec) -> Vec<&str> {
    match spec.platform {
        Platform::Qemu => {
            let machine = ["-machine", "q35,accel=tcg", "-cpu", &spec.model];
            [&machine[..], &["-device", "intel-iommu,intremap=on"]].concat()
        }
        Platform::Kvm | Platform::Bochs => {
            let machine = "q35,accel=kvm,kernel-irqchip=split";
            vec!["-machine", machine, "-cpu", "host"]
        }
    }
}
