//! Control and debug registers, single steps and NMIs: what a cell may do with them works as on bare hardware.

use core::arch::asm;

use gaol_cell::arguments::Arguments;
use gaol_cell::exceptions::Exception;
use gaol_cell::instructions::{cpuid, read_tsc};
use gaol_cell::registers::Msr;
use gaol_cell::{apic, attempt, exceptions, interrupts, println};

use crate::access::{try_read_msr, try_write_msr};
use crate::control::report;

const PROTECTED: u64 = 1;
const TASK_SWITCHED: u64 = 1 << 3;
const ALIGNMENT_MASK: u64 = 1 << 18;
const CACHE_DISABLE: u64 = 1 << 30;
const PAGING: u64 = 1 << 31;
const MACHINE_CHECKS: u64 = 1 << 6;
const VMXE: u64 = 1 << 13;

macro_rules! control_register {
    ($read:ident, $name:literal) => {
        fn $read() -> u64 {
            let value;
            // SAFETY: Reading a control or debug register changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }
    };
}

control_register!(read_cr0, "cr0");
control_register!(read_cr4, "cr4");
control_register!(read_dr6, "dr6");

/// Says whether something is as it should be.
fn check(what: &str, is_right: bool) {
    println!(
        "violator: {what}: {}",
        if is_right { "right" } else { "wrong" }
    );
}

/// A processor of AMD, under SVM: caches that are switched off read as on there, and more bits of CR0 exit. The one that QEMU
/// emulates takes reserved bits of CR4, and can't be entered with them.
fn is_amd() -> bool {
    cpuid(0).ebx.to_le_bytes() == *b"Auth"
}

fn is(result: Result<(), Exception>, vector: u8) -> bool {
    result == Err(Exception { vector })
}

/// Everything that there is to check, each with a line of its own.
pub fn check_all() {
    interrupts::disable();
    forms_of_writing();
    values();
    status_word();
    task_priority();
    debug_registers();
    single_steps();
    extended_control();
    debug_control();
    features();
    registers();
    interrupts::enable();
}

/// A bit of CR0 whose change exits is written from every kind of register; the exit tells which, or the instruction.
fn forms_of_writing() {
    let before = read_cr0();
    let changed = if is_amd() {
        before ^ ALIGNMENT_MASK
    } else {
        before | CACHE_DISABLE
    };
    macro_rules! from_register {
        ($($register:tt),*) => {$({
            // SAFETY: Caches on or off do not change what the memory holds; the old value comes back at once.
            unsafe {
                asm!(concat!("mov cr0, ", $register), in($register) changed, options(nostack));
                check(concat!("cr0 from ", $register), read_cr0() == changed);
                asm!(concat!("mov cr0, ", $register), in($register) before, options(nostack));
                check(concat!("cr0 back from ", $register), read_cr0() == before);
            }
        })*};
    }
    from_register!(
        "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"
    );
    let seen: u64;
    // SAFETY: As above; interrupts are off while RSP is no stack pointer.
    unsafe {
        asm!(
            "mov {stack}, rsp",
            "mov rsp, {changed}",
            "mov cr0, rsp",
            "mov {seen}, cr0",
            "mov rsp, {before}",
            "mov cr0, rsp",
            "mov rsp, {stack}",
            stack = out(reg) _,
            seen = out(reg) seen,
            changed = in(reg) changed,
            before = in(reg) before,
        );
    }
    check("cr0 from rsp", seen == changed && read_cr0() == before);
}

fn values() {
    let (cr0, cr4) = (read_cr0(), read_cr4());
    // SAFETY: Each of these raises an exception, or else changes nothing that this code needs.
    unsafe {
        let no_paging = attempt!("mov cr0, {value}", value = in(reg) cr0 & !PAGING);
        check("cr0 without paging in 64-bit code", is(no_paging, 13));
        let with_both =
            attempt!("mov cr0, {value}", value = in(reg) (cr0 | CACHE_DISABLE) & !PAGING);
        check("the same with a bit of the hypervisor's", is(with_both, 13));
        let no_protection =
            attempt!("mov cr0, {value}", value = in(reg) (cr0 | CACHE_DISABLE) & !PROTECTED);
        check("cr0 without protection", is(no_protection, 13));
        let reserved = attempt!("mov cr0, {value}", value = in(reg) cr0 | CACHE_DISABLE | 1 << 40);
        check("cr0 with a reserved bit", is(reserved, 13));
        check("cr0 is as before", read_cr0() == cr0);
        if !is_amd() {
            let vmxe = attempt!("mov cr4, {value}", value = in(reg) cr4 | VMXE);
            check("cr4 with vmxe", is(vmxe, 13) && read_cr4() == cr4);
        }
        let checks = attempt!("mov cr4, {value}", value = in(reg) cr4 ^ MACHINE_CHECKS);
        check(
            "cr4 with machine checks",
            checks.is_ok() && read_cr4() == cr4 ^ MACHINE_CHECKS,
        );
        let back = attempt!("mov cr4, {value}", value = in(reg) cr4);
        check("cr4 is as before", back.is_ok() && read_cr4() == cr4);
    }
}

fn status_word() {
    let before = read_cr0();
    let word = (before | TASK_SWITCHED) as u16;
    let after_register: u64;
    let after_clearing: u64;
    let after_memory: u64;
    let after_unprotecting: u64;
    // SAFETY: The cell uses no floating point, which is what TS, MP and EM are about.
    unsafe {
        asm!(
            "lmsw {word:x}",
            "mov {after_register}, cr0",
            "clts",
            "mov {after_clearing}, cr0",
            "lmsw word ptr [{pointer}]",
            "mov {after_memory}, cr0",
            "xor {word:e}, {word:e}",
            "lmsw {word:x}",
            "mov {after_unprotecting}, cr0",
            "mov cr0, {before}",
            word = inout(reg) word => _,
            pointer = in(reg) &raw const word,
            after_register = out(reg) after_register,
            after_clearing = out(reg) after_clearing,
            after_memory = out(reg) after_memory,
            after_unprotecting = out(reg) after_unprotecting,
            before = in(reg) before,
        );
    }
    check(
        "lmsw from a register",
        after_register == before | TASK_SWITCHED,
    );
    check("clts", after_clearing == before & !TASK_SWITCHED);
    check("lmsw from memory", after_memory == before | TASK_SWITCHED);
    check(
        "lmsw keeps protection",
        after_unprotecting & 0xf == PROTECTED,
    );
}

fn task_priority() {
    let seen: u64;
    // SAFETY: Interrupts are off; the priority is 0 again at once.
    unsafe {
        asm!("mov cr8, r12", "mov r15, cr8", "mov cr8, {zero}", in("r12") 5u64, out("r15") seen,
             zero = in(reg) 0u64, options(nostack));
    }
    check("cr8 from r12 to r15", seen == 5);
}

fn debug_registers() {
    const WRITES_LOCAL_0: u64 = 1 | 1 << 16;
    let target = 0u8;
    // SAFETY: A breakpoint on a variable of this function; it is off again behind it.
    unsafe {
        asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nostack));
        asm!("mov dr0, {}", in(reg) &raw const target, options(nostack));
        asm!("mov dr7, {}", in(reg) 0x400 | WRITES_LOCAL_0, options(nostack));
        let trapped = attempt!("mov byte ptr [{target}], 0", target = in(reg) &raw const target);
        asm!("mov dr7, {}", in(reg) 0x400u64, options(nostack));
        check(
            "a breakpoint on data",
            is(trapped, 1) && read_dr6() & 0x600f == 1,
        );
        asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nostack));
        check("int1", is(attempt!(".byte 0xf1"), 1));
        // General detect: with GD set, a write to a debug register raises #DB, and GD is clear in its handler.
        asm!("mov dr7, {}", in(reg) 0x2400u64, options(nostack));
        let detected = attempt!("mov dr0, {zero}", zero = in(reg) 0u64);
        check(
            "general detect",
            is(detected, 1) && read_dr6() & 0x2000 != 0,
        );
        asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nostack));
    }
}

/// A single step over an instruction that the hypervisor does ends behind that one, and not one later.
fn single_steps() {
    // `r8` and `r10` are free for what has to be put back behind the instruction.
    macro_rules! step_over {
        ($what:literal, $before:literal, $instruction:literal, $after:literal) => {{
            let behind: u64;
            // SAFETY: The instruction changes the registers that are named or put back, and the flag is clear again in the
            // handler.
            let result = unsafe {
                attempt!(
                    concat!(
                        "lea {behind}, [rip + 56f]\n mov [{end}], {behind}\n", $before, "\n",
                        "lea {behind}, [rip + 55f]\n",
                        "pushfq\n or dword ptr [rsp], 0x100\n popfq\n",
                        $instruction, "\n55:\n nop\n nop\n nop\n56:\n", $after
                    ),
                    behind = out(reg) behind,
                    inout("rax") 0u64 => _, inout("rcx") 0x2ffu64 => _, inout("rdx") 0xcf8u64 => _,
                    out("r8") _, out("r10") _,
                )
            };
            let is_step = read_dr6() & 0x4000 != 0;
            check(concat!("a single step over ", $what), is(result, 1) && is_step && exceptions::address() == behind);
            // SAFETY: Only the record of causes is cleared.
            unsafe { asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nostack)) };
        }};
    }
    step_over!("nothing special", "", "nop", "");
    step_over!("cpuid", "mov r8, rbx", "cpuid", "mov rbx, r8");
    step_over!("a read of a register", "", "rdmsr", "");
    step_over!("a port", "", "in eax, dx", "");
    step_over!("wbinvd", "", "wbinvd", "");
    step_over!(
        "a control register",
        "mov r8, cr0\n mov r10, r8\n bts r10, 30",
        "mov cr0, r10",
        "mov cr0, r8"
    );
    // Behind MOV SS nothing is stepped; INT1 raises its exception all the same, and the next VM entry has to accept that.
    // SAFETY: The stack segment stays the same.
    let result = unsafe {
        attempt!("mov {selector:e}, ss\n pushfq\n or dword ptr [rsp], 0x100\n popfq\n mov ss, {selector:e}\n .byte 0xf1",
                 selector = out(reg) _)
    };
    check("int1 behind mov ss", is(result, 1));
}

fn extended_control() {
    const OSXSAVE: u64 = 1 << 18;
    if cpuid(1).ecx & 1 << 26 == 0 {
        return;
    }
    // SAFETY: No code of the cell uses the registers that XCR0 is about.
    unsafe {
        let enabled = attempt!("mov cr4, {value}", value = in(reg) read_cr4() | OSXSAVE);
        check(
            "xsave is shown when it is on",
            enabled.is_ok() && cpuid(1).ecx & 1 << 27 != 0,
        );
        let nothing = attempt!("xsetbv", in("ecx") 0, in("edx") 0, in("eax") 0);
        check("xsetbv without x87", is(nothing, 13));
        let half = attempt!("xsetbv", in("ecx") 0, in("edx") 0, in("eax") 5);
        check("xsetbv, avx without sse", is(half, 13));
        let all = attempt!("xsetbv", in("ecx") 0, in("edx") 0, in("eax") 3);
        check("xsetbv, x87 and sse", all.is_ok());
        let back = attempt!("mov cr4, {value}", value = in(reg) read_cr4() & !OSXSAVE);
        check(
            "xsave is hidden when it is off",
            back.is_ok() && cpuid(1).ecx & 1 << 27 == 0,
        );
    }
}

fn debug_control() {
    const BRANCH_TRAP: u64 = 2;
    const RECORDS: u64 = 1;
    const STORES: u64 = 1 << 6 | 1 << 7;
    let register = Msr(0x1d9);
    check(
        "debugctl, branch trap",
        try_write_msr(register, BRANCH_TRAP).is_ok(),
    );
    // What it holds can't be asked for: an emulator exists that always answers 0.
    check("debugctl can be read", try_read_msr(register).is_ok());
    check("debugctl, off", try_write_msr(register, 0).is_ok());
    check(
        "debugctl, records",
        is(try_write_msr(register, RECORDS), 13),
    );
    check("debugctl, stores", is(try_write_msr(register, STORES), 13));
    check("debugctl is as before", try_read_msr(register) == Ok(0));
}

fn features() {
    let one = cpuid(1);
    check("no vmx, no smx", one.ecx & (1 << 5 | 1 << 6) == 0);
    check(
        "x2apic and a hypervisor",
        one.ecx & 1 << 21 != 0 && one.ecx >> 31 == 1,
    );
    let counters = cpuid(0xa);
    check(
        "no counters",
        counters.eax | counters.ebx | counters.ecx | counters.edx == 0,
    );
    check("no power management", cpuid(6).eax & !4 == 0);
}

fn registers() {
    check("no machine check banks", try_read_msr(Msr(0x179)) == Ok(0));
    // Memory types: nothing of the root's, and what is written is read back.
    check("no memory types yet", try_read_msr(Msr(0x200)) == Ok(0));
    check(
        "memory types are kept",
        try_write_msr(Msr(0x200), 6).is_ok() && try_read_msr(Msr(0x200)) == Ok(6),
    );
    check(
        "an illegal memory type",
        is(try_write_msr(Msr(0x200), 2), 13),
    );
    check(
        "the revision of the microcode",
        try_write_msr(Msr(0x8b), 0).is_ok(),
    );
    check(
        "supervisor state",
        try_write_msr(Msr(0xda0), 0).is_ok() && is(try_write_msr(Msr(0xda0), 1 << 8), 13),
    );
    for register in [
        0x10,
        0x3b,
        0x79,
        0x150,
        0x1a0,
        0x600,
        0x610,
        0x770,
        0xc8f,
        0xc90,
        0xc001_0015,
        0x4000_0000,
    ] {
        if !is(try_write_msr(Msr(register), 0), 13) {
            println!("violator: register {register:#x} was written: wrong");
        }
    }
}

/// Sends NMIs to this CPU by its id, and says how many came.
pub fn send_nmis() {
    const NMI: u64 = 4 << 8 | 1 << 14;
    const COUNT: u32 = 5;
    let own = u64::from(apic::id());
    let command = own << 32 | NMI;
    let mut received = 0;
    for _ in 0..COUNT {
        // SAFETY: An NMI to this CPU, which is what the attempt waits for.
        let result = unsafe {
            attempt!(
                "wrmsr\n 66:\n pause\n dec {rounds:e}\n jnz 66b",
                in("ecx") Msr::InterruptCommand.0, in("eax") command as u32, in("edx") (command >> 32) as u32,
                rounds = inout(reg) 10_000u32 => _,
            )
        };
        received += u32::from(is(result, 2));
    }
    println!("violator: {received} of {COUNT} NMIs received");
    report("an attempt without", Ok(()));
}

/// Raises an exception whose delivery finds no memory for its stack, at `address=`.
pub fn lose_the_stack(arguments: Arguments<'_>) {
    let stack = arguments.number("address", 1 << 30);
    let start = read_tsc();
    // SAFETY: The hypervisor stops the cell; if it does not, the test has failed, and it does not matter what runs.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) stack) };
    println!("violator: {start} went on");
}
