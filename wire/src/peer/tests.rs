use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

const FAR: Host = Host {
    hardware: [2, 0, 0, 0, 0, 9],
    address: Ipv4Addr::new(10, 0, 2, 15),
};

/// Answers as `answer` says, until it is told to end.
struct Responder {
    link: Link,
    end: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Responder {
    fn new(mut answer: impl FnMut(Frame) -> Vec<Frame> + Send + 'static) -> Self {
        let link = Link::open().unwrap();
        let far = Link::at(link.far_port(), link.port()).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let soon = Instant::now() + Duration::from_millis(20);
                let Some(bytes) = far.receive(soon).unwrap() else {
                    continue;
                };
                for frame in Frame::parse(&bytes).into_iter().flat_map(&mut answer) {
                    far.send(&frame.bytes()).unwrap();
                }
            }
        });
        Self {
            link,
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

/// The right answer.
fn right(frame: &Frame) -> Option<Frame> {
    let content = match frame.content.clone() {
        Content::ArpRequest(wanted) if wanted == FAR.address => Content::ArpReply,
        Content::EchoRequest(echo) => Content::EchoReply(echo),
        Content::Udp(Datagram { from, to, data }) => Content::Udp(Datagram {
            from: to,
            to: from,
            data,
        }),
        _ => return None,
    };
    Some(Frame {
        from: FAR,
        to: frame.from,
        content,
    })
}

fn short(questions: Questions) -> Questions {
    Questions {
        patience: Duration::from_millis(200),
        ..questions
    }
}

#[test]
fn a_good_host_answers_all() {
    let responder = Responder::new(|frame| right(&frame).into_iter().collect());
    let mut peer = Peer::find(&responder.link, FAR.address).unwrap();
    assert_eq!(peer.far(), FAR);
    for kind in [Kind::Ping, Kind::Datagram] {
        for size in [8, 56, 999, LONGEST] {
            let questions = Questions::new(kind, 50).size(size).window(8);
            let trips = peer.ask(questions).unwrap();
            assert!(trips.is_perfect(), "{kind:?} {size}: {trips}");
            assert_eq!(trips.sent, 50);
        }
    }
    assert_eq!(peer.strays, 0);
    assert!(
        peer.ask(Questions::new(Kind::Ping, 1).size(LONGEST + 1))
            .is_err()
    );
}

#[test]
fn losses_are_counted_and_do_not_keep_others() {
    let mut number = 0;
    let responder = Responder::new(move |frame| {
        number += 1;
        let answer = right(&frame);
        answer.filter(|_| number % 5 != 0).into_iter().collect()
    });
    let mut peer = Peer::find(&responder.link, FAR.address).unwrap();
    let questions = short(Questions::new(Kind::Ping, 20).window(4));
    let trips = peer.ask(questions).unwrap();
    assert_eq!((trips.sent, trips.lost(), trips.wrong), (20, 4, 0));
}

#[test]
fn answers_that_are_wrong_are_seen() {
    let responder = Responder::new(|frame| {
        let mut answer = right(&frame);
        if let Some(Content::EchoReply(echo)) = answer.as_mut().map(|frame| &mut frame.content) {
            let at = echo.data.len() - 1;
            echo.data[at] ^= 1;
        }
        answer.into_iter().collect()
    });
    let mut peer = Peer::find(&responder.link, FAR.address).unwrap();
    let trips = peer
        .ask(short(Questions::new(Kind::Ping, 3).window(3)))
        .unwrap();
    assert_eq!((trips.sent, trips.received, trips.wrong), (3, 0, 3));
}

#[test]
fn answers_that_come_again_are_seen() {
    let responder = Responder::new(|frame| {
        let answer = right(&frame);
        answer.clone().into_iter().chain(answer).collect()
    });
    let mut peer = Peer::find(&responder.link, FAR.address).unwrap();
    let trips = peer.ask(short(Questions::new(Kind::Datagram, 5))).unwrap();
    assert_eq!((trips.sent, trips.received), (5, 5));
    assert!(trips.repeated >= 4 && !trips.is_perfect(), "{trips}");
}

#[test]
fn somebody_who_answers_to_nonsense_is_seen() {
    let responder = Responder::new(|frame| {
        let mut answer = right(&frame);
        if answer.is_none() {
            answer = Some(Frame {
                from: FAR,
                to: frame.from,
                content: Content::ArpReply,
            });
        }
        answer.into_iter().collect()
    });
    let mut peer = Peer::find(&responder.link, FAR.address).unwrap();
    let (sent, answers) = peer.malformed(Duration::from_millis(300)).unwrap();
    assert!(sent >= 30);
    assert!(!answers.is_empty());
}

#[test]
fn figures_that_are_none_are_refused() {
    // An echo of the question.
    let responder = Responder::new(|frame| right(&frame).into_iter().collect());
    let mut peer = Peer::find(&responder.link, FAR.address).unwrap();
    assert!(peer.statistics().is_err());
}

#[test]
fn content_depends_on_round_and_number() {
    let one = content(1, 1, 100);
    assert_eq!(one.len(), 100);
    assert_ne!(one, content(2, 1, 100));
    assert_ne!(one, content(1, 2, 100));
    assert!(is_earlier(&one, 2) && !is_earlier(&one, 1));
}
