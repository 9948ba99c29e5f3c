//! `gaol plan`: a pair of files for a cell, from the command line or by dialogue.
//!
//! Invariant: nothing is written before everything was decided and checked, and no file is overwritten unasked.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, Write};
use std::path::Path;

use gaol_config::create::{Created, Options, Refused, create};
use gaol_config::plan::{
    Choice, Plan, Request, SYSTEM_FILE, available_cpus, check_name, commands, find_device, plan,
};
use gaol_config::quantity::Size;
use gaol_machine::Machine;
use serde_json::{Value, json};

use crate::arguments::PlanArguments;
use crate::failure::{Failure, Result};
use crate::host::Host;
use crate::output::{Report, write_new};

use super::create::{PLACE, failure, read, source};

/// What a cell gets when nobody says.
const DEFAULT_NAME: &str = "cell";
const DEFAULT_CPUS: u32 = 1;
const DEFAULT_MEMORY: u64 = 64 << 20;

/// `gaol plan`. `answers` is where the answers to questions come from; none when nobody can be asked. Questions go to
/// `questions`, and what people should know besides to `asides`.
///
/// # Errors
/// Why there is no plan.
pub fn run(
    host: &Host,
    arguments: &PlanArguments,
    answers: Option<&mut dyn BufRead>,
    questions: &mut dyn Write,
    asides: &mut dyn Write,
) -> Result<Report> {
    let source = source(host, arguments.root.as_deref())?;
    let (machine, lacks) = read(&source, asides)?;
    let request = match answers.filter(|_| is_incomplete(arguments)) {
        Some(answers) => Dialogue {
            machine: &machine,
            answers,
            questions,
        }
        .request(arguments)?,
        None => from_arguments(arguments)?,
    };
    let created = create(SYSTEM_FILE, &machine, &lacks, &Options::default()).map_err(failure)?;
    let plan = plan(&machine, &created, &request).map_err(failure)?;
    for note in created.notes.iter().skip(lacks.len()) {
        let _ = writeln!(asides, "note: {note}");
    }
    for warning in &plan.warnings {
        let _ = writeln!(
            asides,
            "warning: {}\n  {}",
            warning.message(),
            warning.remedy()
        );
    }
    let directory = &arguments.output;
    write_files(directory, arguments.force, &created, &plan, &request)?;
    Ok(report(directory, &plan, &request))
}

/// Whether something that every cell has was not said.
fn is_incomplete(arguments: &PlanArguments) -> bool {
    arguments.name.is_none() || arguments.cpus.is_none() || arguments.memory.is_none()
}

fn from_arguments(arguments: &PlanArguments) -> Result<Request> {
    Ok(Request {
        name: arguments.name.clone().unwrap_or(DEFAULT_NAME.to_owned()),
        cpus: arguments.cpus.unwrap_or(DEFAULT_CPUS),
        memory: arguments.memory.unwrap_or(DEFAULT_MEMORY),
        devices: arguments.devices.clone(),
        unprotected_dma: arguments.unprotected_dma,
        shared_with_root: arguments.shared_with_root.unwrap_or(0),
        image: arguments.image.as_deref().map(image).transpose()?,
    })
}

/// Name and size of an image.
fn image(path: &Path) -> Result<(String, u64)> {
    let metadata = fs::metadata(path).map_err(|error| {
        Failure::file(
            "read the image",
            path,
            &error,
            "Give the file that the cell is to run.",
        )
    })?;
    Ok((path.display().to_string(), metadata.len()))
}

fn write_files(
    directory: &Path,
    force: bool,
    created: &Created,
    plan: &Plan,
    request: &Request,
) -> Result<()> {
    fs::create_dir_all(directory).map_err(|error| {
        Failure::file(
            "create",
            directory,
            &error,
            "Give another directory with -o.",
        )
    })?;
    let system = directory.join(SYSTEM_FILE);
    let cell = directory.join(format!("{}.toml", request.name));
    // That of the plan before, for the same machine, is this one.
    let is_there = fs::read_to_string(&system).is_ok_and(|text| text == created.toml);
    if !force && cell.exists() {
        let error = std::io::ErrorKind::AlreadyExists.into();
        let remedy = "Choose another --name, another place with -o, or --force to overwrite it.";
        return Err(Failure::file("write", &cell, &error, remedy));
    }
    if !is_there {
        write_new(&system, force, &created.toml, PLACE)?;
    }
    write_new(&cell, force, &plan.toml, PLACE)
}

fn choice_json(choice: &Choice) -> Value {
    json!({ "what": choice.what, "value": choice.value, "why": choice.why })
}

fn report(directory: &Path, plan: &Plan, request: &Request) -> Report {
    let mut text = String::new();
    for choice in &plan.choices {
        let _ = writeln!(text, "{}: {}\n  {}", choice.what, choice.value, choice.why);
    }
    let system = directory.join(SYSTEM_FILE);
    let cell = directory.join(format!("{}.toml", request.name));
    let next = commands(request, &directory.display().to_string());
    let _ = writeln!(
        text,
        "\n{} and {} were checked together. Next:",
        system.display(),
        cell.display()
    );
    for command in &next {
        let _ = writeln!(text, "  {command}");
    }
    Report {
        text,
        json: json!({
            "ok": true,
            "system": system.display().to_string(),
            "cell": cell.display().to_string(),
            "cpus": plan.cell.view().cpus().iter().collect::<Vec<u32>>(),
            "choices": plan.choices.iter().map(choice_json).collect::<Vec<Value>>(),
            "commands": next,
        }),
    }
}

/// Questions and answers.
struct Dialogue<'a> {
    machine: &'a Machine,
    answers: &'a mut dyn BufRead,
    questions: &'a mut dyn Write,
}

/// What an answer means, or why it is none: the sentence and the remedy.
type Answer<T> = std::result::Result<T, (String, String)>;

fn words(refused: Refused) -> (String, String) {
    match refused {
        Refused::Request(message, remedy) => (message, remedy),
        other => (failure(other).text(), String::new()),
    }
}

impl Dialogue<'_> {
    /// Asks for what the arguments leave open.
    fn request(&mut self, arguments: &PlanArguments) -> Result<Request> {
        let _ = writeln!(
            self.questions,
            "An empty answer takes what is in brackets; Ctrl-D ends without a plan."
        );
        let most = available_cpus(self.machine);
        let machine = self.machine;
        let name = self.value(&arguments.name, "Name of the cell", DEFAULT_NAME, |text| {
            check_name(text).map(|()| text.to_owned()).map_err(words)
        })?;
        let question = format!("CPUs, 1 to {most}");
        let cpus = self.value(&arguments.cpus, &question, "1", |text| match text.parse() {
            Ok(count) if (1..=most).contains(&count) => Ok(count),
            _ => Err((
                format!("{text:?} is not a number from 1 to {most}"),
                String::new(),
            )),
        })?;
        let default = Size(DEFAULT_MEMORY).to_string();
        let memory = self.value(&arguments.memory, "Memory", &default, size)?;
        let devices = match arguments.devices.is_empty() {
            false => arguments.devices.clone(),
            true => {
                let question = "PCI functions, by address or id, with commas between";
                self.value(&None, question, "none", |text| devices(machine, text))?
            }
        };
        let shared_with_root = self.value(
            &arguments.shared_with_root,
            "Memory shared with Linux",
            "none",
            |text| if text == "none" { Ok(0) } else { size(text) },
        )?;
        let image = match &arguments.image {
            Some(path) => Some(image(path)?),
            None => self.value(&None, "Image file", "none", |text| match text {
                "none" => Ok(None),
                path => image(Path::new(path))
                    .map(Some)
                    .map_err(|failure| (failure.text().trim_end().to_owned(), String::new())),
            })?,
        };
        Ok(Request {
            name,
            cpus,
            memory,
            devices,
            unprotected_dma: arguments.unprotected_dma,
            shared_with_root,
            image,
        })
    }

    /// What was given, or the first answer that means something.
    fn value<T: Clone>(
        &mut self,
        given: &Option<T>,
        question: &str,
        default: &str,
        parse: impl Fn(&str) -> Answer<T>,
    ) -> Result<T> {
        if let Some(given) = given {
            return Ok(given.clone());
        }
        loop {
            let _ = write!(self.questions, "{question} [{default}]: ");
            let _ = self.questions.flush();
            let mut line = String::new();
            match self.answers.read_line(&mut line) {
                Ok(0) | Err(_) => {
                    let _ = writeln!(self.questions);
                    return Err(Failure::new(
                        "ended",
                        "the dialogue was ended, and nothing was written",
                        "Give what is known on the command line: see `gaol plan --help`.",
                    ));
                }
                Ok(_) => (),
            }
            let answer = match line.trim() {
                "" => default,
                answer => answer,
            };
            match parse(answer) {
                Ok(value) => return Ok(value),
                Err((message, remedy)) => {
                    let _ = writeln!(self.questions, "  {message}");
                    if !remedy.is_empty() {
                        let _ = writeln!(self.questions, "  {remedy}");
                    }
                }
            }
        }
    }
}

fn size(text: &str) -> Answer<u64> {
    match Size::parse(text) {
        Some(Size(size)) if size != 0 => Ok(size),
        _ => Err((
            format!("{text:?} is not a size"),
            "Write it as \"64 MiB\".".to_owned(),
        )),
    }
}

fn devices(machine: &Machine, text: &str) -> Answer<Vec<String>> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let names = text.split([',', ' ']).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let function = find_device(machine, name).map_err(words)?;
            Ok(function.address.to_string())
        })
        .collect()
}
