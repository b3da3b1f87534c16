//! Methods by their names.

use modegpt_architecture::ModelConfig;
use modegpt_compress::{ErrorUnit, Mode, PrefixRefit, Target};
use serde_json::Value;

use super::CompareError;
use crate::{AllocationChoice, Calibration, PlanRequest};

/// A method as a comparison is asked for it: a mode, and behind it what differs from what the mode does.
///
/// `best` is the mode as `compress` applies it; `best-uniform-fisher` the same with uniform allocation and errors weighed
/// with gradients. Every mode can be named.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedMethod {
    name: String,
    mode: Mode,
    changes: Vec<Change>,
}

/// One thing that differs from what the mode does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Allocation(AllocationChoice),
    /// Errors are weighed with gradients of the loss.
    Fisher,
    /// What is refitted on the compressed prefix.
    Prefix(PrefixRefit),
}

/// Far above any name that means something.
const LONGEST_NAME: usize = 80;

/// What may stand behind a mode.
const CHANGES: [(&str, Change); 7] = [
    ("uniform", Change::Allocation(AllocationChoice::Uniform)),
    ("influence", Change::Allocation(AllocationChoice::Paper)),
    ("curves", Change::Allocation(AllocationChoice::ErrorCurves)),
    ("fisher", Change::Fisher),
    ("prefix", Change::Prefix(PrefixRefit::All)),
    ("prefix-output", Change::Prefix(PrefixRefit::Output)),
    ("no-prefix", Change::Prefix(PrefixRefit::None)),
];

impl NamedMethod {
    /// The method called `name`.
    ///
    /// # Errors
    /// [`CompareError::Method`] if there is none of that name.
    pub fn parse(name: &str) -> Result<Self, CompareError> {
        let fail = |reason: String| CompareError::Method { name: name.to_owned(), reason };
        if name.len() > LONGEST_NAME {
            return Err(fail(format!("it has more than {LONGEST_NAME} bytes")));
        }
        let cuts = name.match_indices('-').map(|(place, _)| place).chain([name.len()]);
        let mut modes = cuts.filter_map(|cut| Some((Self::mode(&name[..cut]).ok()?, &name[cut..])));
        // The longest: `svd-llm` is not `svd` with something behind it.
        let Some((mode, rest)) = modes.next_back() else {
            let known = Self::mode(name).err().unwrap_or_default();
            return Err(fail(format!("{known}, perhaps with {} behind it", names_of_changes())));
        };
        let changes = parse_changes(rest).ok_or_else(|| {
            let given = rest.trim_start_matches('-');
            fail(format!("`{given}` is nothing that can stand behind a mode: expected {}", names_of_changes()))
        })?;
        let kinds: Vec<_> = changes.iter().map(std::mem::discriminant).collect();
        if (1..kinds.len()).any(|index| kinds[..index].contains(&kinds[index])) {
            return Err(fail("two things in it decide the same".to_owned()));
        }
        let method = Self { name: name.to_owned(), mode, changes };
        let request = method.request(0.5);
        if request.unit == ErrorUnit::Nats && !request.weighs_errors() {
            return Err(fail("nothing in it is decided by errors that gradients could weigh".to_owned()));
        }
        Ok(method)
    }

    /// What it was asked for as.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is asked of a plan, with samples for which a refit on the compressed prefix is decided.
    pub fn request_for(&self, sparsity: f64, config: &ModelConfig, calibration: &Calibration) -> PlanRequest {
        let mut request = self.request(sparsity);
        let is_said = self.changes.iter().any(|change| matches!(change, Change::Prefix(_)));
        if !is_said {
            request.methods.prefix = request.usual_prefix(config, calibration);
        }
        request
    }

    fn request(&self, sparsity: f64) -> PlanRequest {
        let mut request = PlanRequest::new(Target::Sparsity(sparsity), self.mode);
        for change in &self.changes {
            match *change {
                Change::Allocation(allocation) => request.allocation = allocation,
                Change::Fisher => request.unit = ErrorUnit::Nats,
                Change::Prefix(prefix) => request.methods.prefix = prefix,
            }
        }
        request
    }

    /// The mode of exactly this name; else what serde knows of the names that there are.
    fn mode(name: &str) -> Result<Mode, String> {
        serde_json::from_value(Value::String(name.to_owned())).map_err(|error: serde_json::Error| error.to_string())
    }
}

/// What stands behind a mode: nothing, or names of changes with `-` before each.
fn parse_changes(rest: &str) -> Option<Vec<Change>> {
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let rest = rest.strip_prefix('-')?;
    CHANGES.iter().find_map(|(name, change)| {
        let mut changes = parse_changes(rest.strip_prefix(name)?)?;
        changes.insert(0, *change);
        Some(changes)
    })
}

fn names_of_changes() -> String {
    CHANGES.map(|(name, _)| format!("-{name}")).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn request(name: &str) -> PlanRequest {
        NamedMethod::parse(name).expect("a method").request(0.3)
    }

    #[test]
    fn names_are_modes_with_what_differs_behind_them() {
        let paper = PlanRequest::new(Target::Sparsity(0.3), Mode::Paper);
        let best = PlanRequest::new(Target::Sparsity(0.3), Mode::Best);
        assert_eq!(request("paper"), paper);
        assert_eq!(request("best"), best);
        let uniform = AllocationChoice::Uniform;
        assert_eq!(request("paper-uniform"), PlanRequest { allocation: uniform, ..paper });
        let fisher = PlanRequest { unit: ErrorUnit::Nats, ..best };
        assert_eq!(request("best-fisher"), fisher);
        assert_eq!(request("best-uniform-fisher"), PlanRequest { allocation: uniform, ..fisher });
        let prefix = |name: &str| request(name).methods.prefix;
        assert_eq!([prefix("best-prefix"), prefix("best-no-prefix")], [PrefixRefit::All, PrefixRefit::None]);
        assert_eq!(prefix("best-prefix-output-fisher"), PrefixRefit::Output);
        assert_eq!(request("paper-curves").allocation, AllocationChoice::ErrorCurves);
    }

    #[test]
    fn what_is_no_method_is_refused_by_name() {
        for (name, expected) in [
            ("", "unknown variant"),
            ("bset", "`bset`: unknown variant `bset`, expected"),
            ("best-", "can stand behind a mode"),
            ("best-unifrom", "`unifrom` is nothing"),
            ("uniform", "unknown variant"),
            ("best-uniform-curves", "two things in it decide the same"),
            (&"best-prefix".repeat(20), "more than 80 bytes"),
            ("paper-fisher", "nothing in it is decided by errors"),
        ] {
            let told = NamedMethod::parse(name).expect_err("no method").to_string();
            assert!(told.contains(expected), "{told}");
        }
    }
}
