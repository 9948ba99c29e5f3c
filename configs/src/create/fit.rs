//! Whether a system file describes the machine at hand.

use gaol_abi::outcome::Reason;
use gaol_machine::processors::Processors;

use crate::compile::System;
use crate::problem::Problem;

/// Compares the CPUs of a system file with those that are there; a file without `[machine]` fits everywhere.
///
/// # Errors
/// [`Reason::OtherMachine`], when their number or an APIC id differs.
pub fn fits(system: &System, processors: &Processors) -> Result<(), Problem> {
    let view = system.view();
    if !view.describes_machine() {
        return Ok(());
    }
    let problem = |message: String| {
        Problem::new(
            &system.source,
            Reason::OtherMachine,
            message,
            "Let `gaol config create` write the file on this machine, or take [machine] out: cells are then checked against each other only."
                .to_owned(),
        )
    };
    let (said, there) = (view.machine_cpus().len(), processors.all.len());
    if said != there {
        let place = system.places.machine.clone();
        let message =
            format!("the file describes a machine with {said} CPUs, and this one has {there}");
        return Err(problem(message).at(place, "another machine"));
    }
    for (index, (said, there)) in view.machine_cpus().iter().zip(&processors.all).enumerate() {
        // What is offline has no id yet; the module refuses it by its number.
        if let Some(apic_id) = there.apic_id
            && apic_id != said.apic_id
        {
            let message = format!(
                "CPU {} has APIC id {} in the file, and {apic_id} in this machine",
                there.id, said.apic_id
            );
            let place = system.places.cpus.get(index).cloned();
            return Err(problem(message).at(place, "another machine"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::collected;
    use super::super::{Options, create};
    use super::*;

    #[test]
    fn only_the_machine_of_the_file_fits() {
        let mut machine = collected("two-sockets");
        let created = create("system.toml", &machine, &[], &Options::default()).unwrap();
        fits(&created.system, &machine.processors).unwrap();
        fits(&System::built_in(), &machine.processors).unwrap();
        machine.processors.all[3].apic_id = Some(77);
        let problem = fits(&created.system, &machine.processors).unwrap_err();
        assert_eq!(problem.reason(), Reason::OtherMachine);
        assert_eq!(
            problem.message(),
            "CPU 3 has APIC id 6 in the file, and 77 in this machine"
        );
        let (line, _) = problem.line_and_column().unwrap();
        assert!(
            created
                .toml
                .lines()
                .nth(line - 1)
                .unwrap()
                .contains("# CPU 3")
        );
        machine.processors.all.truncate(4);
        let problem = fits(&created.system, &machine.processors).unwrap_err();
        assert_eq!(
            problem.message(),
            "the file describes a machine with 8 CPUs, and this one has 4"
        );
        machine.processors.all[3].apic_id = None;
    }
}
