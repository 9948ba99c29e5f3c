//! Hypercalls by the root and by cells, one after the other, on a model of the machine.
//!
//! What is fuzzed is what decides: who may ask for what, the copy of a configuration out of the root's memory and its
//! reader, the ledger, and the decisions of a cell's life. The model has memory, cells in their phases, and
//! communication regions in which the bytes write what they like.

use gaol_abi::MAX_CELLS;
use gaol_abi::communication::{CellState, Message, Reply};
use gaol_abi::config::MAX_CELL_SIZE;
use gaol_abi::hypercall::{Errno, Hypercall};
use gaol_config::CellView;
use gaol_config::check::any_machine;
use gaol_config::encode::{Binary, seal};
use gaol_config::ledger::{CellId, Ledger};
use gaol_hypervisor::cell::Phase;
use gaol_hypervisor::cell::create::copy_config_from;
use gaol_hypervisor::cell::decision::{self, Asked, Destroy, Situation, Stop, start, stop};
use gaol_hypervisor::hypercall::request::{Caller, Request, decode, error, result};

/// Where the root's memory is in which configurations stand, and how far it goes.
const MEMORY: u64 = 0x1000;
const MEMORY_BYTES: u64 = 0x8000;
/// Bytes of a call.
const CALL: usize = 16;
/// Looks at a cell that was asked, until its time is over.
const PATIENCE: u32 = 3;
/// Pieces of memory that a cell has to be cleared of.
const PIECES: u32 = 2;

/// A cell of the model.
#[derive(Clone, Copy)]
struct Cell {
    phase: Phase,
    loadable: bool,
    asked: Option<u32>,
    to_clear: u32,
    words: [u32; 3],
}

struct Model {
    memory: Vec<u8>,
    ledger: Ledger,
    cells: [Option<Cell>; MAX_CELLS],
}

impl Model {
    fn new(memory: &[u8]) -> Self {
        let mut memory = memory.to_vec();
        memory.resize(MEMORY_BYTES as usize, 0);
        let mut ledger = Ledger::new();
        let mut name = [0; gaol_abi::NAME_LENGTH];
        name[..4].copy_from_slice(b"root");
        ledger.name_root(&name);
        Self {
            memory,
            ledger,
            cells: [None; MAX_CELLS],
        }
    }

    fn locked(&self) -> Option<u32> {
        let is_locked = |cell: &Option<Cell>| {
            cell.is_some_and(|cell| {
                cell.phase == Phase::Running && cell.words[0] == CellState::RunningLocked.0
            })
        };
        Some(self.cells.iter().position(is_locked)? as u32)
    }

    fn create(&mut self, address: u64, force: bool) -> i64 {
        let mut buffer = Box::new([0; MAX_CELL_SIZE as usize]);
        let memory = &self.memory;
        // A page at a time, as the hypervisor's windows are.
        let copied = copy_config_from(&mut buffer, address, |at, target| {
            let offset = usize::try_from(at.checked_sub(MEMORY)?).ok()?;
            let rest = memory.get(offset..)?;
            let room = 4096 - offset % 4096;
            let bytes = rest.len().min(room).min(target.len());
            target[..bytes].copy_from_slice(&rest[..bytes]);
            (bytes != 0).then_some(bytes)
        });
        let size = match copied {
            Ok(size) => size,
            Err(failure) => {
                assert!(failure.result() < 0);
                return failure.result();
            }
        };
        assert!(size <= MAX_CELL_SIZE as usize);
        let binary = Binary::new(&buffer[..size]);
        let Ok(view) = CellView::parse(binary.bytes()) else {
            return error(Errno::Invalid);
        };
        if self.locked().is_some() && !force {
            return error(Errno::NotPermitted);
        }
        let Some(id) = self.ledger.free_id() else {
            return error(Errno::NoMemory);
        };
        let machine = any_machine();
        let claimed = match self.ledger.check(&machine, &view) {
            Ok(()) => self.ledger.claim(id, &view),
            Err(refusal) => Err(refusal),
        };
        if claimed.is_err() {
            return error(Errno::Invalid);
        }
        let index = id.0 as usize;
        assert!(index != 0 && index < MAX_CELLS && self.cells[index].is_none());
        self.cells[index] = Some(Cell {
            phase: Phase::Fresh,
            loadable: false,
            asked: None,
            to_clear: PIECES,
            words: [0; 3],
        });
        i64::from(id.0)
    }

    fn cell(&mut self, id: u64) -> Option<&mut Cell> {
        let index = usize::try_from(id).ok()?;
        self.cells.get_mut(index)?.as_mut()
    }

    /// `None`: stopped.
    fn stop(&mut self, id: u64, force: bool) -> Option<i64> {
        let cell = self.cell(id)?;
        let [state, message, reply] = cell.words;
        let situation = Situation {
            phase: cell.phase,
            silent: false,
            state: CellState(state),
            message: Message(message),
            reply: Reply(reply),
            asked: match cell.asked {
                None => Asked::No,
                Some(0) => Asked::TooLate,
                Some(_) => Asked::InTime,
            },
        };
        let answer = stop(&situation, force);
        assert!(!force || matches!(answer, Stop::Nothing | Stop::Now));
        match answer {
            Stop::Nothing => return None,
            Stop::Now => {
                cell.phase = Phase::Stopped;
                cell.asked = None;
                return None;
            }
            Stop::Ask => {
                cell.asked = Some(PATIENCE);
                cell.words = [state, Message::ShutdownRequest.0, 0];
            }
            Stop::AskAgain | Stop::Wait => {
                cell.asked = cell.asked.map(|left| left.saturating_sub(1));
            }
            Stop::Refuse(_) => {
                cell.asked = None;
                return Some(error(Errno::NotPermitted));
            }
        }
        Some(error(Errno::TryAgain))
    }

    fn set_loadable(&mut self, id: u64, force: bool) -> i64 {
        if let Some(answer) = self.stop(id, force) {
            return answer;
        }
        match self.cell(id) {
            Some(cell) if cell.phase == Phase::Stopped => {
                cell.loadable = true;
                0
            }
            Some(_) => error(Errno::Busy),
            None => error(Errno::NoEntry),
        }
    }

    fn destroy(&mut self, id: u64, force: bool) -> i64 {
        if let Some(answer) = self.stop(id, force) {
            return answer;
        }
        let locked = self.locked();
        let Some(cell) = self.cell(id) else {
            return error(Errno::NoEntry);
        };
        match decision::destroy(cell.phase, cell.to_clear == 0, locked, force) {
            Destroy::Stop => unreachable!("it was stopped"),
            Destroy::Refuse(other) => {
                assert!(!force && u64::from(other) != id);
                error(Errno::NotPermitted)
            }
            Destroy::Clear => {
                (cell.phase, cell.loadable, cell.to_clear) = (Phase::Dying, false, PIECES);
                error(Errno::TryAgain)
            }
            Destroy::Again => error(Errno::TryAgain),
            Destroy::Free => {
                self.cells[id as usize] = None;
                self.ledger
                    .release(CellId(id as u32))
                    .expect("the ledger has each cell");
                0
            }
        }
    }

    fn scrub(&mut self, id: u64) -> i64 {
        let Some(cell) = self.cell(id) else {
            return error(Errno::NoEntry);
        };
        if !matches!(cell.phase, Phase::Fresh | Phase::Dying) {
            return 0;
        }
        cell.to_clear = cell.to_clear.saturating_sub(1);
        if cell.to_clear != 0 {
            return 1;
        }
        if cell.phase == Phase::Fresh {
            cell.phase = Phase::Stopped;
        }
        0
    }

    fn answer(&mut self, request: Request) -> i64 {
        match request {
            Request::Create { address, force } => self.create(address, force),
            Request::Start(id) => match self.cell(id) {
                None => error(Errno::NoEntry),
                Some(cell) => match start(cell.phase, cell.loadable) {
                    Ok(()) => {
                        (cell.phase, cell.loadable) = (Phase::Running, false);
                        0
                    }
                    Err(_) => error(Errno::Invalid),
                },
            },
            Request::SetLoadable { id, force } => self.set_loadable(id, force),
            Request::Destroy { id, force } => self.destroy(id, force),
            Request::Scrub(id) => self.scrub(id),
            _ => 0,
        }
    }

    /// The ledger and the cells are of one mind, and no cell has died halfway.
    fn check(&self) {
        let cells = self.cells.iter().flatten().count();
        assert_eq!(self.ledger.cell_count(), cells + 1);
        assert!(self.cells[0].is_none());
    }
}

/// A call: bytes 0 to 3 the number, 4 the caller, 5 the cell whose communication region is written to, 6 and 7 what,
/// 8 to 11 and 12 to 15 the arguments.
fn call(model: &mut Model, bytes: &[u8; CALL]) {
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        u32::from_le_bytes(word)
    };
    let caller = Caller {
        is_root: bytes[4] & 1 != 0,
        is_wide: bytes[4] & 2 != 0,
        privilege_level: bytes[4] >> 2 & 3,
    };
    if let Some(cell) = model.cell(u64::from(bytes[5])) {
        let field = usize::from(bytes[6] % 3);
        cell.words[field] = match bytes[7] {
            255 => u32::MAX,
            value => u32::from(value % 8),
        };
    }
    let high = if bytes[4] & 0x80 != 0 {
        0xffff_ffff << 32
    } else {
        0
    };
    let (rax, rdi, rsi) = (
        u64::from(word(0)) | high,
        u64::from(word(8)) | high,
        u64::from(word(12)) | high,
    );
    let is_creation = Hypercall(rax as u32) == Hypercall::CellCreate;
    let before = is_creation.then(|| model.ledger.clone());
    let value = match decode(caller, rax, rdi, rsi) {
        Err(errno) => {
            assert!(matches!(errno, Errno::NotPermitted | Errno::NoSystemCall));
            error(errno)
        }
        Ok(request) => {
            assert_eq!(caller.privilege_level, 0);
            assert!(caller.is_root || !request.is_management());
            model.answer(request)
        }
    };
    if let Some(before) = before.filter(|_| value < 0) {
        assert!(
            before == model.ledger,
            "a refused creation has left a trace"
        );
    }
    assert!((-200..=MAX_CELLS as i64).contains(&value), "{value}");
    let narrow = result(value, false);
    assert_eq!(narrow >> 32, 0);
    assert_eq!(result(value, true) as i64, value);
    model.check();
}

/// Calls that begin with "CALL", then the root's memory; once as it is, and once with configurations that are sealed.
pub fn run(bytes: &[u8]) {
    let calls_end = crate::position(bytes, b"MEMORY").unwrap_or(bytes.len());
    let (calls, memory) = bytes.split_at(calls_end);
    let memory = memory.get(6..).unwrap_or_default();
    let sealed: Vec<u8> = crate::pieces(memory, b"GAOLCEL\0")
        .into_iter()
        .enumerate()
        .flat_map(|(index, piece)| match index {
            0 => piece.to_vec(),
            _ => {
                let mut whole = b"GAOLCEL\0".to_vec();
                whole.extend_from_slice(piece);
                whole.resize(whole.len().max(64), 0);
                crate::put(&mut whole, 8, &gaol_abi::ABI_REVISION.to_le_bytes());
                seal(whole).bytes().to_vec()
            }
        })
        .collect();
    for memory in [memory, &sealed] {
        let mut model = Model::new(memory);
        for bytes in calls.as_chunks::<CALL>().0 {
            call(&mut model, bytes);
        }
        // By force all of it ends, in few steps, whatever was written.
        for id in 1..MAX_CELLS as u64 {
            let ends = (0..8).any(|_| {
                let _ = model.scrub(id);
                matches!(model.destroy(id, true), 0 | -2)
            });
            assert!(ends, "cell {id} does not end");
        }
        model.check();
    }
}
