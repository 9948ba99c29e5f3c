//! Every decision for every situation, and cells that write what they like while they are stopped.

extern crate std;

use std::vec::Vec;

use super::*;

const PHASES: [Phase; 4] = [Phase::Fresh, Phase::Stopped, Phase::Running, Phase::Dying];
const ASKED: [Asked; 3] = [Asked::No, Asked::InTime, Asked::TooLate];
/// All values with a meaning, and some without.
const WORDS: [u32; 9] = [0, 1, 2, 3, 4, 5, 0x100, 0x8000_0000, u32::MAX];

fn situations() -> Vec<Situation> {
    let mut all = Vec::new();
    for phase in PHASES {
        for silent in [false, true] {
            for asked in ASKED {
                for state in WORDS {
                    for message in WORDS {
                        for reply in WORDS {
                            all.push(Situation {
                                phase,
                                silent,
                                state: CellState(state),
                                message: Message(message),
                                reply: Reply(reply),
                                asked,
                            });
                        }
                    }
                }
            }
        }
    }
    all
}

/// The same, said the other way round: when each answer is given.
fn is_right(situation: &Situation, force: bool, answer: Stop) -> bool {
    let runs = situation.phase == Phase::Running;
    let is_told = runs && !force && !situation.silent;
    let has_ended = (2..=4).contains(&situation.state.0);
    let was_asked = situation.asked != Asked::No;
    let locked = situation.state == CellState::RunningLocked;
    let says = |replies: &[u32]| replies.contains(&situation.reply.0);
    let open = says(&[0, 4]);
    match answer {
        Stop::Nothing => !runs,
        Stop::Now => runs && (!is_told || has_ended || (was_asked && says(&[3]))),
        Stop::Ask => is_told && !has_ended && !was_asked && !locked,
        Stop::Refuse(StopRefusal::Locked) => is_told && !was_asked && locked,
        Stop::Refuse(StopRefusal::Denied) => {
            is_told && !has_ended && was_asked && !open && !says(&[3])
        }
        Stop::Refuse(StopRefusal::TimedOut) => {
            is_told && !has_ended && situation.asked == Asked::TooLate && open
        }
        Stop::AskAgain => {
            is_told
                && !has_ended
                && situation.asked == Asked::InTime
                && says(&[4])
                && situation.message == Message::None
        }
        Stop::Wait => is_told && !has_ended && situation.asked == Asked::InTime && open,
    }
}

#[test]
fn every_situation_has_its_answer() {
    for situation in situations() {
        for force in [false, true] {
            let answer = stop(&situation, force);
            assert!(
                is_right(&situation, force, answer),
                "{situation:?} {answer:?}"
            );
        }
    }
}

#[test]
fn force_asks_nobody() {
    for situation in situations() {
        let expected = match situation.phase {
            Phase::Running => Stop::Now,
            _ => Stop::Nothing,
        };
        assert_eq!(stop(&situation, true), expected);
    }
}

#[test]
fn cells_start_when_they_are_loaded() {
    for phase in PHASES {
        for loadable in [false, true] {
            let may = start(phase, loadable).is_ok();
            assert_eq!(may, phase == Phase::Stopped && loadable);
        }
    }
    assert_eq!(start(Phase::Running, true), Err(StartRefusal::Running));
    assert_eq!(start(Phase::Stopped, false), Err(StartRefusal::NotLoaded));
    assert_eq!(start(Phase::Fresh, true), Err(StartRefusal::NotScrubbed));
}

/// Destroys a cell whose communication region is as `says` tells at each step. Returns whether it is gone, and the steps.
fn destroy_whole(
    mut phase: Phase,
    locked: Option<u32>,
    force: bool,
    mut says: impl FnMut() -> [u32; 3],
) -> (bool, u32) {
    let (patience, mut pieces, mut asked_at) = (10, 4, None);
    for step in 0.. {
        match destroy(phase, pieces == 0, locked, force) {
            Destroy::Stop => {
                let [state, message, reply] = says();
                let situation = Situation {
                    phase,
                    silent: false,
                    state: CellState(state),
                    message: Message(message),
                    reply: Reply(reply),
                    asked: match asked_at {
                        None => Asked::No,
                        Some(at) if step > at + patience => Asked::TooLate,
                        Some(_) => Asked::InTime,
                    },
                };
                match stop(&situation, force) {
                    Stop::Now | Stop::Nothing => phase = Phase::Stopped,
                    Stop::Ask => asked_at = Some(step),
                    Stop::AskAgain | Stop::Wait => {}
                    Stop::Refuse(_) => return (false, step),
                }
            }
            Destroy::Clear => phase = Phase::Dying,
            Destroy::Again => pieces -= 1,
            Destroy::Free => return (true, step),
            Destroy::Refuse(_) => return (false, step),
        }
        assert!(step < 40, "no end in sight");
    }
    unreachable!()
}

#[test]
fn destroying_ends_whatever_the_cell_writes() {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut word = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        match random >> 60 {
            0..6 => (random >> 32) as u32 % 6,
            6..15 => 0,
            _ => (random >> 32) as u32,
        }
    };
    for round in 0..20_000 {
        let locked = (round % 3 == 0).then_some(7);
        for phase in PHASES {
            let (gone, _) = destroy_whole(phase, locked, true, || [word(), word(), word()]);
            assert!(gone);
            let (gone, _) = destroy_whole(phase, None, false, || [word(), word(), word()]);
            assert!(gone || phase == Phase::Running);
            let (gone, _) = destroy_whole(phase, Some(7), false, || [word(), word(), word()]);
            assert_eq!(gone, phase == Phase::Dying);
        }
    }
}

#[test]
fn a_cell_that_never_answers_is_refused_at_its_deadline_and_by_force_goes_at_once() {
    let (gone, steps) = destroy_whole(Phase::Running, None, false, || [0, 1, 0]);
    assert!(!gone && steps >= 10);
    let (gone, steps) = destroy_whole(Phase::Running, None, true, || [1, 1, 2]);
    // Stop, clear, four pieces, free.
    assert!(gone && steps == 6);
}
