//! The same instructions on the cell's RAM and on a device's memory, which it reaches through the hypervisor only.
//!
//! Each form starts from the same bytes, registers and flags in both places, and must end with the same.

use core::arch::asm;

use gaol_cell::arguments::Arguments;
use gaol_cell::println;
use gaol_cell::shared::GuestAddress;

/// Bytes that a form may touch, as words.
const WORDS: usize = 8;
/// Where the tests' configuration has the device's memory.
const DEVICE: GuestAddress = GuestAddress::new(0x60_0e00);

/// What a form starts from and leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    rax: u64,
    rcx: u64,
    rdx: u64,
    /// Of these two: how far they have gone from where they were.
    rsi: u64,
    rdi: u64,
    flags: u64,
    place: [u64; WORDS],
    scratch: [u64; WORDS],
}

type Form = unsafe fn(&mut State, rsi: *mut u64, rdi: *mut u64);

macro_rules! forms {
    ($($text:literal),* $(,)?) => {
        [$(($text, {
            /// # Safety
            /// The bytes at both addresses are nobody else's, and string instructions go no further.
            unsafe fn form(state: &mut State, rsi: *mut u64, rdi: *mut u64) {
                let (mut source, mut destination) = (rsi as u64, rdi as u64);
                // SAFETY: As the caller says. Flags are set for the form only.
                unsafe {
                    asm!(
                        "pushfq",
                        "push r8",
                        "popfq",
                        $text,
                        "pushfq",
                        "pop r8",
                        "popfq",
                        inout("rax") state.rax,
                        inout("rcx") state.rcx,
                        inout("rdx") state.rdx,
                        inout("rsi") source,
                        inout("rdi") destination,
                        inout("r8") state.flags,
                    );
                }
                state.rsi = source.wrapping_sub(rsi as u64);
                state.rdi = destination.wrapping_sub(rdi as u64);
            }
            form as Form
        })),*]
    };
}

/// RDI is the place, RSI the scratch. Addresses get into no register and no flag, since the places differ.
const FORMS: [(&str, Form); 88] = forms![
    "mov [rdi], al",
    "mov [rdi + 1], ah",
    "mov [rdi], ax",
    "mov [rdi], eax",
    "mov [rdi], rax",
    "mov byte ptr [rdi + 3], 0x5a",
    "mov word ptr [rdi + 2], -2",
    "mov dword ptr [rdi + 4], -3",
    "mov qword ptr [rdi + 8], -4",
    "mov cl, [rdi + 1]",
    "mov dh, [rdi + 1]",
    "mov cx, [rdi + 2]",
    "mov ecx, [rdi + 4]",
    "mov rcx, [rdi + 8]",
    "mov ecx, [edi]",
    "mov ecx, gs:[rdi]",
    "movzx ecx, byte ptr [rdi]",
    "movzx rcx, word ptr [rdi]",
    "movzx cx, byte ptr [rdi]",
    "movsx cx, byte ptr [rdi]",
    "movsx ecx, word ptr [rdi]",
    "movsx rcx, byte ptr [rdi]",
    "movsxd rcx, dword ptr [rdi + 4]",
    "movnti [rdi], eax",
    "movnti [rdi], rax",
    "movbe [rdi], ecx",
    "movbe cx, [rdi]",
    "movbe rcx, [rdi]",
    "add [rdi], al",
    "add [rdi], rcx",
    "add ecx, [rdi]",
    "add dword ptr [rdi], 0x7fffffff",
    "or [rdi], ax",
    "or cl, [rdi]",
    "or dword ptr [rdi], 0x80",
    "adc [rdi], rax",
    "adc rcx, [rdi]",
    "adc byte ptr [rdi], 0x7f",
    "sbb [rdi], eax",
    "sbb cx, [rdi]",
    "sbb word ptr [rdi], 0x1234",
    "and [rdi], eax",
    "and rcx, [rdi]",
    "and qword ptr [rdi], -16",
    "sub [rdi], cl",
    "sub rcx, [rdi]",
    "sub dword ptr [rdi], 1",
    "xor [rdi], rcx",
    "xor ecx, [rdi]",
    "xor byte ptr [rdi], 0xff",
    "cmp [rdi], rcx",
    "cmp cx, [rdi]",
    "cmp dword ptr [rdi], 0x11",
    "cmp byte ptr [rdi], 0x80",
    "test [rdi], eax",
    "test [rdi], cl",
    "test qword ptr [rdi], 0x10",
    "test byte ptr [rdi], 0x80",
    "not dword ptr [rdi]",
    "neg qword ptr [rdi]",
    "neg byte ptr [rdi]",
    "inc dword ptr [rdi]",
    "dec word ptr [rdi]",
    "lock inc qword ptr [rdi]",
    "lock add [rdi], eax",
    "lock or byte ptr [rdi], 1",
    "xchg [rdi], cl",
    "xchg [rdi], rcx",
    "xadd [rdi], ecx",
    "lock xadd [rdi], rdx",
    "lock cmpxchg [rdi], ecx",
    "mov rax, [rdi]; lock cmpxchg [rdi], rcx",
    "bt dword ptr [rdi], 7",
    "lock bts qword ptr [rdi], 40",
    "btr word ptr [rdi], 3",
    "btc dword ptr [rdi], 31",
    "setc byte ptr [rdi]",
    "setle byte ptr [rdi + 5]",
    "cmovz ecx, [rdi]",
    "cmovnz rcx, [rdi]",
    "mov ecx, 5; rep stosb",
    "mov ecx, 3; rep stosd",
    "std; lea rdi, [rdi + 40]; mov ecx, 3; rep stosq; cld",
    "xchg rsi, rdi; lodsw; xchg rsi, rdi",
    "movsq",
    "mov ecx, 7; rep movsw",
    "mov ecx, 3; xchg rsi, rdi; rep movsd; xchg rsi, rdi",
    "mov rdx, rsi; lea rsi, [rdi + 8]; mov ecx, 2; rep movsq; mov rsi, rdx; mov edx, 0",
];

const START: [u64; WORDS] = [
    0x8182_8384_0102_0380,
    0xfffe_fdfc_7f00_0011,
    0,
    u64::MAX,
    0x1234_5678_9abc_def0,
    1,
    2,
    3,
];

/// Does one form at `place`, whose content and the scratch's are those of `START`.
fn run(form: Form, place: *mut u64, flags: u64) -> State {
    let mut scratch = [0u64; WORDS];
    for (index, word) in START.iter().enumerate() {
        scratch[index] = word.rotate_left(24);
        // SAFETY: The caller's bytes, eight for each word.
        unsafe { place.add(index).write_volatile(*word) };
    }
    let mut state = State {
        rax: 0x1020_3040_8070_60f1,
        rcx: 0x0123_4567_89ab_cdef,
        rdx: 0xfedc_ba98_7654_3210,
        rsi: 0,
        rdi: 0,
        flags,
        place: [0; WORDS],
        scratch: [0; WORDS],
    };
    // SAFETY: No form goes beyond eight words.
    unsafe { form(&mut state, scratch.as_mut_ptr(), place) };
    for (index, word) in state.place.iter_mut().enumerate() {
        // SAFETY: As above.
        *word = unsafe { place.add(index).read_volatile() };
    }
    state.scratch = scratch;
    state
}

/// Compares all forms in both places, with all status flags clear and set.
pub fn compare(arguments: Arguments<'_>) {
    let device = arguments.address("address", DEVICE).number() as *mut u64;
    let mut differing = 0;
    for (text, form) in FORMS {
        for flags in [0x2, 0x8d7] {
            let mut ram = [0u64; WORDS];
            let expected = run(form, ram.as_mut_ptr(), flags);
            let found = run(form, device, flags);
            if expected != found {
                differing += 1;
                println!("violator: {text} with flags {flags:#x}: {expected:x?} but {found:x?}");
            }
        }
    }
    println!("violator: {} forms, {differing} differ", FORMS.len());
}
