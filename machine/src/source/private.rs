//! What is nobody's business, and is taken out of files before anyone sees it: so it can't be collected either.
//!
//! Invariant: filtering twice is as good as once, so that a collection reads as the machine did.

use crate::pci::capabilities::scrub;

/// Linux' parameters that mean something to Gaol. Others may hold secrets, names and numbers of disks.
const PARAMETERS: [&str; 39] = [
    "acpi",
    "amd_iommu",
    "clocksource",
    "console",
    "disableapic",
    "earlycon",
    "earlyprintk",
    "hpet",
    "ibt",
    "idle",
    "intel_idle.max_cstate",
    "intel_iommu",
    "intel_pstate",
    "intremap",
    "iomem",
    "iommu",
    "isolcpus",
    "kvm.enable_virt_at_load",
    "lockdown",
    "maxcpus",
    "mem",
    "mem_encrypt",
    "memmap",
    "mitigations",
    "nmi_watchdog",
    "no_timer_check",
    "noapic",
    "nohz_full",
    "nolapic",
    "nosmp",
    "nosmt",
    "notsc",
    "nowatchdog",
    "nox2apic",
    "nr_cpus",
    "pci",
    "processor.max_cstate",
    "rcu_nocbs",
    "tsc",
];

/// Takes out of the content of `path` what is nobody's business.
pub(super) fn filter(path: &str, content: &mut Vec<u8>) {
    let names = path.split('/');
    let names: Vec<&str> = names.filter(|name| !matches!(*name, "" | ".")).collect();
    match names.as_slice() {
        ["proc", "cmdline"] => keep_parameters(content),
        ["sys", "bus", "pci", "devices", _, "config"] => scrub(content),
        _ => (),
    }
}

fn keep_parameters(content: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(content).into_owned();
    let words = text.split_whitespace().filter(|word| {
        let name = word.split_once('=').map_or(*word, |(name, _)| name);
        PARAMETERS.contains(&name)
    });
    let kept = words.collect::<Vec<_>>().join(" ");
    *content = format!("{kept}\n").into_bytes();
}

#[cfg(test)]
mod tests {
    use super::super::{Source, Tree};

    #[test]
    fn secrets_are_neither_read_nor_recorded() {
        let mut tree = Tree::default();
        tree.insert_file(
            "/proc/cmdline",
            "BOOT_IMAGE=/vmlinuz root=UUID=12 console=ttyS0,115200 password=secret memmap=4M$0x3f000000 nosmt\n",
        );
        let mut config = vec![0; 4096];
        // A serial number behind another extended capability.
        config[0x100..0x104].copy_from_slice(&[0x01, 0x00, 0x02, 0x15]);
        config[0x150..0x154].copy_from_slice(&[0x03, 0x00, 0x01, 0x00]);
        config[0x154..0x15c].fill(0x42);
        tree.insert_file("/sys/bus/pci/devices/0000:00:01.0/config", config.clone());
        let source = Source::tree(tree).recording();
        let expected = "console=ttyS0,115200 memmap=4M$0x3f000000 nosmt\n";
        let path = "/sys/bus/pci/devices/0000:00:01.0/config";
        config[0x154..0x15c].fill(0);
        let check = |source: &Source| {
            assert_eq!(source.read_text("/proc/cmdline").unwrap(), expected);
            assert_eq!(source.read_text("//proc/./cmdline").unwrap(), expected);
            assert_eq!(source.read(path).unwrap(), config);
        };
        check(&source);
        check(&Source::tree(source.recorded()));
        let recorded = source.recorded();
        assert_eq!(recorded.read("/proc/cmdline").unwrap(), expected.as_bytes());
    }
}
