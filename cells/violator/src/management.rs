//! Hypercalls that are not for a cell.

use gaol_abi::hypercall::{CpuInfoType, DESTROY_FORCE, Hypercall, InfoType};
use gaol_cell::arguments::Arguments;
use gaol_cell::hypercall::call;
use gaol_cell::println;

/// Makes them all. `cpu=` names a CPU of the root's, `cell=` a cell.
pub fn call_all(arguments: Arguments<'_>) {
    let cpu = arguments.number("cpu", 0);
    let cell = arguments.number("cell", 0);
    let state = CpuInfoType::State.0;
    for (number, first, second) in [
        (Hypercall::Disable, 0, 0),
        (Hypercall::CellCreate, 0x2000, 0),
        (Hypercall::CellCreate, !0xfff, 0),
        (Hypercall::CellStart, cell, 0),
        (Hypercall::CellSetLoadable, cell, DESTROY_FORCE),
        (Hypercall::CellDestroy, cell, DESTROY_FORCE),
        (Hypercall::CellGetState, cell, 0),
        (Hypercall::CpuGetInfo, cpu, state),
        (Hypercall::CpuGetInfo, u64::MAX, state),
        (Hypercall::Commit, 0, 0),
        (Hypercall::Scrub, cell, 0),
        (Hypercall(9), 0, 0),
        (Hypercall(0x102), 0, 0),
        (Hypercall(u32::MAX), u64::MAX, u64::MAX),
        (Hypercall::GetInfo, u64::MAX, 0),
        (Hypercall::GetInfo, InfoType::Cells.0, 0),
    ] {
        let number_text = number.0;
        match call(number, first, second) {
            Ok(result) => println!("violator: hypercall {number_text:#x}({first:#x}): {result}"),
            Err(errno) => println!(
                "violator: hypercall {number_text:#x}({first:#x}): error {}",
                errno.0
            ),
        }
    }
}

/// Lets the hypervisor fail on this CPU, as `kind=` says. There is nothing behind it when the launch permits that.
pub fn fail_hypervisor(arguments: Arguments<'_>) {
    let kind = arguments.number("kind", 0);
    match call(Hypercall::InjectFault, kind, 0) {
        Ok(result) => println!("violator: the hypervisor goes on: {result}"),
        Err(errno) => println!("violator: the hypervisor goes on: error {}", errno.0),
    }
}
