//! Names of the counters in [`crate::public::CpuPublic::exits`].
//!
//! The index is the basic exit reason of VMX (SDM, "VMX Basic Exit Reasons"), or for SVM that of the reason which is the same or
//! next to it; the names are those of the counters that users see.

use crate::image::Vendor;

/// Number of counters a CPU has.
pub const COUNTERS: usize = 96;

/// Counter: accesses that the nested page table does not allow.
pub const COUNTER_NESTED_FAULT: usize = 48;
/// Counter on SVM: exits with codes that have no other one.
pub const COUNTER_OTHER: usize = 79;
/// Counter that does not belong to an exit reason: NMIs that were kicks from another CPU.
pub const COUNTER_KICKS: usize = 80;
/// Counter: accesses of the root cell to what it does not own.
pub const COUNTER_ROOT_VIOLATIONS: usize = 81;
/// Counter: writes of the root cell to the xAPIC page.
pub const COUNTER_XAPIC_WRITES: usize = 82;
/// Counter: writes of the x2APIC interrupt command register.
pub const COUNTER_X2APIC_ICR: usize = 83;
/// Counter: NMIs that were handed to the guest.
pub const COUNTER_GUEST_NMIS: usize = 84;
/// Counter: interprocessor interrupts to CPUs of others, dropped.
pub const COUNTER_DROPPED_IPIS: usize = 85;
/// Counter: NMIs that came to a cell's CPU and were not sent by the cell, dropped.
pub const COUNTER_DROPPED_NMIS: usize = 86;
/// The first counter that does not count exits of its own: those from here on are parts of the others.
pub const FIRST_DERIVED_COUNTER: usize = 80;

/// Name of counter `index`, as it stands in sysfs and in `gaol cell stats`; `None` for one that nothing counts.
#[must_use]
pub fn counter_name(vendor: Vendor, index: usize) -> Option<&'static str> {
    let derived = match index {
        COUNTER_KICKS => Some("kicks"),
        COUNTER_ROOT_VIOLATIONS => Some("root_violations"),
        COUNTER_XAPIC_WRITES => Some("xapic_writes"),
        COUNTER_X2APIC_ICR => Some("x2apic_icr"),
        COUNTER_GUEST_NMIS => Some("guest_nmis"),
        COUNTER_DROPPED_IPIS => Some("dropped_ipis"),
        COUNTER_DROPPED_NMIS => Some("dropped_nmis"),
        _ => None,
    };
    if derived.is_some() {
        return derived;
    }
    match vendor {
        Vendor::Vmx => vmx_name(index),
        Vendor::Svm => svm_name(index),
        _ => None,
    }
}

/// Where SVM has another word, or a reason of its own.
fn svm_name(index: usize) -> Option<&'static str> {
    Some(match index {
        8 => "iret",
        11 => "skinit",
        19 => "stgi",
        20 => "vmrun",
        21 => "vmload",
        22 => "vmsave",
        26 => "clgi",
        COUNTER_NESTED_FAULT => "nested_page_fault",
        53 => "invlpga",
        COUNTER_OTHER => "other",
        0..=3 | 7 | 9..=18 | 28..=33 | 36 | 39 | 40 | 46 | 47 | 51 | 54 | 55 => {
            return vmx_name(index);
        }
        _ => return None,
    })
}

fn vmx_name(index: usize) -> Option<&'static str> {
    Some(match index {
        0 => "exception_or_nmi",
        1 => "external_interrupt",
        2 => "triple_fault",
        3 => "init",
        4 => "sipi",
        7 => "interrupt_window",
        8 => "nmi_window",
        9 => "task_switch",
        10 => "cpuid",
        11 => "getsec",
        12 => "hlt",
        13 => "invd",
        14 => "invlpg",
        15 => "rdpmc",
        16 => "rdtsc",
        17 => "rsm",
        18 => "hypercall",
        19..=27 => [
            "vmclear", "vmlaunch", "vmptrld", "vmptrst", "vmread", "vmresume", "vmwrite", "vmxoff",
            "vmxon",
        ][index - 19],
        28 => "control_register",
        29 => "debug_register",
        30 => "port",
        31 => "rdmsr",
        32 => "wrmsr",
        33 => "invalid_guest_state",
        34 => "msr_loading",
        36 => "mwait",
        37 => "monitor_trap",
        39 => "monitor",
        40 => "pause",
        41 => "machine_check_on_entry",
        43 => "tpr_threshold",
        44 => "apic_access",
        45 => "virtual_eoi",
        46 => "gdtr_or_idtr",
        47 => "ldtr_or_tr",
        COUNTER_NESTED_FAULT => "ept_violation",
        49 => "ept_misconfiguration",
        50 => "invept",
        51 => "rdtscp",
        52 => "preemption_timer",
        53 => "invvpid",
        54 => "wbinvd",
        55 => "xsetbv",
        56 => "apic_write",
        57 => "rdrand",
        58 => "invpcid",
        59 => "vmfunc",
        60 => "encls",
        61 => "rdseed",
        62 => "page_modification_log",
        63 => "xsaves",
        64 => "xrstors",
        67 => "umwait",
        68 => "tpause",
        _ => return None,
    })
}
