//! Everything at once on all CPUs of the cell, and INIT and startup IPIs among them.
//!
//! Each CPU does all three kinds of attack, in turns, so that at any time another one does each. In the end the first CPU
//! sends INIT and startup IPIs to the others, whose program then is one in real mode that causes exits without pause; and
//! at last it has them come back to this program.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use gaol_cell::instructions::read_tsc;
use gaol_cell::{apic, cpus, interrupts};
use hostile_cell::attempt::{Attempt, Destination, SCRATCH};
use hostile_cell::random::Random;

use crate::perform::Attacker;
use crate::say::say;
use crate::{list, region, storm};

/// CPUs that take part.
const MOST: usize = 3;
/// Kinds of attack.
const KINDS: u32 = 3;
/// INIT and startup IPIs that are sent to each CPU.
const RESTARTS: u32 = 300;
/// How long the first CPU waits for the others in the end, in cycles.
const PATIENCE: u64 = 20_000_000_000;

const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// `again: cpuid; in al, 0x40; out 0x64, al; jmp again`.
const PROGRAM: [u8; 8] = [0x0f, 0xa2, 0xe4, 0x40, 0xe6, 0x64, 0xeb, 0xf8];
/// Where it is: the last page of the scratch memory, which nothing is written to meanwhile.
const PROGRAM_AT: u64 = SCRATCH + 0x4_f000;

static SEED: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static IDS: [AtomicU32; MOST] = [const { AtomicU32::new(u32::MAX) }; MOST];
/// CPUs beside the first that have come so far that an NMI finds its handler.
static READY: AtomicU32 = AtomicU32::new(0);
/// All are ready: the attacks, among which are NMIs to the others, may begin.
static BEGUN: AtomicBool = AtomicBool::new(false);
/// CPUs beside the first that have done their part.
static DONE: AtomicU32 = AtomicU32::new(0);
/// CPUs that have come back after a startup IPI.
static BACK: AtomicU32 = AtomicU32::new(0);
/// Rows of the list that went wrong on any CPU.
static WRONG: AtomicU32 = AtomicU32::new(0);

/// Does each kind of attack, the one that belongs to the number of the CPU first.
fn attack(number: u32) {
    let attacker = Attacker::new(number);
    let seed = SEED.load(Ordering::Relaxed) + u64::from(number);
    let count = COUNT.load(Ordering::Relaxed);
    for round in 0..KINDS {
        match (number + round) % KINDS {
            0 => {
                let wrong = list::quietly(&attacker);
                WRONG.fetch_add(wrong, Ordering::Relaxed);
            }
            1 => {
                let tally = storm::attempt(&attacker, seed, count, |_| ());
                say!("CPU {number}: checksum {:#x}", tally.checksum);
            }
            _ => {
                region::attack(&mut Random::new(seed), count);
                region::end();
            }
        }
    }
}

/// What a CPU beside the first does; one with a higher number than the cell has CPUs has been started a second time.
fn other(number: u32) -> ! {
    interrupts::disable();
    if number as usize >= MOST {
        BACK.fetch_add(1, Ordering::Release);
        cpus::halt()
    }
    IDS[number as usize].store(apic::id(), Ordering::Release);
    READY.fetch_add(1, Ordering::Release);
    while !BEGUN.load(Ordering::Acquire) {
        spin_loop();
    }
    attack(number);
    DONE.fetch_add(1, Ordering::Release);
    // Now it is at the mercy of the first.
    let mut random = Random::new(u64::from(number));
    loop {
        region::attack(&mut random, 1_000);
    }
}

fn wait(counter: &AtomicU32, wanted: u32) -> bool {
    let start = read_tsc();
    while counter.load(Ordering::Acquire) < wanted {
        if read_tsc().wrapping_sub(start) > PATIENCE {
            return false;
        }
        spin_loop();
    }
    true
}

/// Runs it all on the cell's `cpus` CPUs.
pub fn run(cpus: u16, seed: u64, count: u64) {
    let others = u32::from(cpus).saturating_sub(1);
    assert!(
        (1..MOST as u32).contains(&others),
        "the cell needs two or three CPUs"
    );
    SEED.store(seed, Ordering::Relaxed);
    COUNT.store(count, Ordering::Relaxed);
    say!("seed {seed:#x}, {cpus} CPUs");
    cpus::start_others(other);
    while READY.load(Ordering::Acquire) < others {
        spin_loop();
    }
    BEGUN.store(true, Ordering::Release);
    attack(0);
    while DONE.load(Ordering::Acquire) < others {
        spin_loop();
    }
    say!("attacks done, {} wrong", WRONG.load(Ordering::Relaxed));

    for (address, byte) in (PROGRAM_AT..).zip(PROGRAM) {
        // SAFETY: The scratch memory is not Rust's.
        unsafe { (address as *mut u8).write_volatile(byte) };
    }
    let attacker = Attacker::new(0);
    let send = |id: &AtomicU32, command| {
        let destination = Destination::Id(id.load(Ordering::Acquire));
        attacker.perform(Attempt::Interrupt(destination, command));
    };
    let targets = &IDS[1..=others as usize];
    for round in 0..RESTARTS {
        for id in targets {
            send(id, INIT);
            if round % 3 != 0 {
                send(id, STARTUP | (PROGRAM_AT >> 12) as u32);
            }
            if round % 3 == 2 {
                send(id, STARTUP | (PROGRAM_AT >> 12) as u32);
            }
        }
    }
    say!("{RESTARTS} restarts");
    for id in targets {
        send(id, INIT);
        send(id, STARTUP);
    }
    let back = wait(&BACK, others);
    region::end();
    say!(
        "all done, {} came back, {back}",
        BACK.load(Ordering::Relaxed)
    );
}
