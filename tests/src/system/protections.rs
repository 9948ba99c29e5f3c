//! The protections with which the hypervisor runs: each that the CPU has is on, on a model with all of them.

use anyhow::{Context as _, Result, ensure};
use core::mem::offset_of;
use gaol_abi::public::{CPU_OFFSET, CpuPublic};

use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::latency;
use crate::machine::Platform;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "protections",
    // The usual models have no SMAP, or no UMIP.
    machine: |mut spec| {
        spec.model = match spec.platform {
            Platform::Bochs => "broadwell_ult",
            Platform::Qemu => "EPYC,+svm,+npt,+umip",
            Platform::Kvm => "host",
        }
        .to_owned();
        Ok(spec)
    },
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "each-that-the-cpu-has-is-on",
            run: smap_and_all,
        },
        Check {
            name: "a-real-time-cell-ticks-with-them",
            run: ticks,
        },
    ],
};

/// A flag of /proc/cpuinfo, and its bit in CR4.
const FLAGS: [(&str, u32); 3] = [("smep", 20), ("smap", 21), ("umip", 11)];
const WRITE_PROTECT: u64 = 1 << 16;
const NO_EXECUTE: u64 = 1 << 11;

/// CR0, CR4 and EFER of the hypervisor on a CPU.
fn host_registers(context: &mut Context, cpu: u32) -> Result<[u64; 3]> {
    let page = CPU_OFFSET + u64::from(cpu) * gaol_abi::PAGE_SIZE;
    let at = page + offset_of!(CpuPublic, host_registers) as u64;
    let text = context.machine.check(&format!(
        "dd if=/sys/devices/gaol/public of=/tmp/registers bs=8 skip={} count=3 2>/dev/null; xxd -p /tmp/registers",
        at / 8
    ))?;
    let digits: String = text.split_whitespace().collect();
    let word = |index: usize| -> Result<u64> {
        let digits = digits
            .get(index * 16..index * 16 + 16)
            .context("too few bytes")?;
        Ok(u64::from_str_radix(digits, 16)?.swap_bytes())
    };
    Ok([word(0)?, word(1)?, word(2)?])
}

/// The hypervisor is enabled, and has what Linux says that the CPU has.
pub(super) fn are_on(context: &mut Context) -> Result<()> {
    let flags = context.machine.check("grep -m 1 ^flags /proc/cpuinfo")?;
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    for cpu in 0..CPUS {
        let [cr0, cr4, efer] = host_registers(context, cpu)?;
        ensure!(
            cr0 & WRITE_PROTECT != 0 && efer & NO_EXECUTE != 0,
            "CPU {cpu}: CR0 is {cr0:#x}, EFER {efer:#x}"
        );
        for (name, bit) in FLAGS {
            let is_on = cr4 >> bit & 1 != 0;
            ensure!(
                is_on == has(name),
                "CPU {cpu}: {name} is {is_on} in CR4 {cr4:#x}, and in the CPU {}",
                has(name)
            );
        }
    }
    ensure!(
        has("smep"),
        "the CPU has no protection that could be missed"
    );
    Ok(())
}

fn smap_and_all(context: &mut Context) -> Result<()> {
    context.enable()?;
    are_on(context)?;
    let flags = context.machine.check("grep -m 1 ^flags /proc/cpuinfo")?;
    ensure!(
        flags.contains(" smap "),
        "this model has no SMAP: choose another"
    );
    context.disable()
}

fn ticks(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("latency", "period=100us ticks=1000")?;
    let timeout = std::time::Duration::from_secs(600);
    let run = latency::wait(&mut context.machine, "latency", timeout, &|_| {})?;
    latency::is_as_promised(context.platform, &run, 1000)?;
    context.machine.gaol("cell destroy latency")?;
    context.disable()
}
