//! Single instructions.

use gaol_cell::attempt;
use hostile_cell::attempt::Instruction;
use hostile_cell::outcome::Outcome;

use super::plain;

/// Memory operand of whatever needs one.
#[repr(C, align(64))]
struct Operand([u64; 8]);

/// A selector beyond the end of the descriptor table.
const GARBAGE: u64 = 0xfff8;

/// Executes an instruction.
pub fn execute(instruction: Instruction) -> Outcome {
    let mut operand = Operand([0x2000, 0, 0, 0, 0, 0, 0, 0]);
    let at = &raw mut operand;
    // SAFETY: None of these changes memory but the operand, and none changes what the program stands on when it goes
    // through: they raise an exception, or do nothing, or read.
    let result = unsafe {
        match instruction {
            Instruction::Vmxon => attempt!("vmxon [{at}]", at = in(reg) at),
            Instruction::Vmxoff => attempt!("vmxoff"),
            Instruction::Vmclear => attempt!("vmclear [{at}]", at = in(reg) at),
            Instruction::Vmptrld => attempt!("vmptrld [{at}]", at = in(reg) at),
            Instruction::Vmptrst => attempt!("vmptrst [{at}]", at = in(reg) at),
            Instruction::Vmlaunch => attempt!("vmlaunch"),
            Instruction::Vmresume => attempt!("vmresume"),
            Instruction::Vmread => attempt!("vmread rax, rcx", out("rax") _, in("rcx") 0x681e_u64),
            Instruction::Vmwrite => {
                attempt!("vmwrite rcx, rax", in("rax") 0_u64, in("rcx") 0x681e_u64)
            }
            Instruction::Vmfunc => attempt!("vmfunc", in("eax") 0, in("ecx") 0),
            Instruction::Invept => attempt!("invept rax, [{at}]", at = in(reg) at, in("rax") 2_u64),
            Instruction::Invvpid => {
                attempt!("invvpid rax, [{at}]", at = in(reg) at, in("rax") 2_u64)
            }
            Instruction::Vmrun => attempt!("vmrun rax", in("rax") 0x2000_u64),
            Instruction::Vmload => attempt!("vmload rax", in("rax") 0x2000_u64),
            Instruction::Vmsave => attempt!("vmsave rax", in("rax") 0xf_f000_u64),
            Instruction::Vmmcall => attempt!("vmmcall", in("eax") 5),
            Instruction::Stgi => attempt!("stgi"),
            Instruction::Clgi => attempt!("clgi"),
            Instruction::Skinit => attempt!("skinit eax", in("eax") 0xf_0000),
            Instruction::Getsec => attempt!("getsec", inout("eax") 0 => _, inout("ecx") 0 => _),
            Instruction::Rsm => attempt!("rsm"),
            Instruction::Encls => attempt!("encls", inout("eax") 0 => _, in("ecx") 0),
            Instruction::Invd => attempt!("invd"),
            Instruction::Wbinvd => attempt!("wbinvd"),
            Instruction::Clts => attempt!("clts"),
            Instruction::Lmsw => attempt!("smsw eax\nlmsw ax", out("eax") _),
            Instruction::Smsw => attempt!("smsw eax", out("eax") _),
            Instruction::Sgdt => attempt!("sgdt [{at}]", at = in(reg) at),
            Instruction::Sldt => attempt!("sldt eax", out("eax") _),
            Instruction::Str => attempt!("str eax", out("eax") _),
            Instruction::Ud2 => attempt!("ud2"),
            Instruction::Int1 => attempt!(".byte 0xf1"),
            Instruction::Int3 => attempt!("int3"),
            Instruction::IntNmi => attempt!("int 2"),
            // MOV CR1, RAX and MOV CR5, RAX: the assembler knows no such registers.
            Instruction::MovCr1 => attempt!(".byte 0x0f, 0x22, 0xc8"),
            Instruction::MovCr5 => attempt!(".byte 0x0f, 0x22, 0xe8"),
            Instruction::Rdpmc => attempt!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _),
            Instruction::Rdtsc => attempt!("rdtsc", out("eax") _, out("edx") _),
            Instruction::Pause => attempt!("pause"),
            Instruction::Monitor => {
                attempt!("monitor", in("rax") at, in("ecx") 0, in("edx") 0)
            }
            Instruction::Invlpg => attempt!("invlpg [{at}]", at = in(reg) at),
            Instruction::InvlpgNonCanonical => {
                attempt!("invlpg [{at}]", at = in(reg) 0x8000_0000_0000_0000_u64)
            }
            Instruction::LtrGarbage => attempt!("ltr {at:x}", at = in(reg) GARBAGE),
            Instruction::LldtGarbage => attempt!("lldt {at:x}", at = in(reg) GARBAGE),
            Instruction::FarJumpToGarbage => {
                (*at).0[0] = GARBAGE << 32;
                attempt!("jmp fword ptr [{at}]", at = in(reg) at)
            }
            Instruction::IretToGarbage => {
                // The frame of IRET lies below what is in use, and is taken away whatever becomes of it.
                attempt!(
                    "mov {saved}, rsp\npush 0x10\npush {saved}\npush 2\npush {selector}\npush 0\niretq\n77:\nmov rsp, {saved}",
                    saved = out(reg) _,
                    selector = in(reg) GARBAGE
                )
            }
            Instruction::TaskGate => return super::endings::through_task_gate(),
            Instruction::Xgetbv => {
                attempt!("xgetbv", in("ecx") 0, out("eax") _, out("edx") _)
            }
        }
    };
    plain(result)
}
