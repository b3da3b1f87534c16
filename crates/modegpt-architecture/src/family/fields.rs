//! Reading the fields of a `config.json` with errors that name them.

use serde_json::{Map, Value};

use crate::{Activation, ConfigError, SpecialTokens};

/// The fields of a JSON object. `null` counts as absent, as it does in Python's configurations.
pub(super) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn new(json: &'a Value) -> Result<Self, ConfigError> {
        json.as_object().map(Self).ok_or_else(|| ConfigError::Invalid {
            field: "config.json".to_owned(),
            expected: "an object".to_owned(),
            found: json.to_string().chars().take(40).collect(),
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(name)
            .map(|value| {
                convert(value).ok_or_else(|| ConfigError::Invalid {
                    field: name.to_owned(),
                    expected: expected.to_owned(),
                    found: value.to_string().chars().take(60).collect(),
                })
            })
            .transpose()
    }

    fn required<T>(name: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| ConfigError::Missing { field: name.to_owned() })
    }

    pub(super) fn text(&self, name: &str) -> Result<String, ConfigError> {
        Self::required(name, self.optional_text(name)?)
    }

    pub(super) fn optional_text(&self, name: &str) -> Result<Option<String>, ConfigError> {
        self.typed(name, "a text", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn size(&self, name: &str) -> Result<usize, ConfigError> {
        Self::required(name, self.optional_size(name)?)
    }

    pub(super) fn optional_size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(name, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A size that divides others or counts things: at least 1, and small enough to make a list of.
    pub(super) fn count(&self, name: &str) -> Result<usize, ConfigError> {
        Self::required(name, self.optional_count(name)?)
    }

    pub(super) fn optional_count(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        const MOST: u64 = 1 << 16;
        self.typed(name, "a whole number from 1 to 65536", |v| v.as_u64().filter(|n| (1..=MOST).contains(n)))
            .map(|count| count.map(|count| count as usize))
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn number(&self, name: &str, default: f64) -> Result<f64, ConfigError> {
        let number = self.typed(name, "a positive number", |v| v.as_f64().filter(|x| x.is_finite() && *x > 0.0))?;
        Ok(number.unwrap_or(default))
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ConfigError> {
        Ok(self.typed(name, "an object", Value::as_object)?.map(Fields))
    }

    /// `bos_token_id` and `eos_token_id`; the latter is a number or a list of them.
    pub(super) fn special_tokens(&self) -> Result<SpecialTokens, ConfigError> {
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let bos = self.typed("bos_token_id", "a token id", id)?;
        let eos = self.typed("eos_token_id", "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            _ => id(value).map(|id| vec![id]),
        })?;
        Ok(SpecialTokens { bos, eos: eos.unwrap_or_default() })
    }

    /// An activation by the name that transformers gives it.
    pub(super) fn activation(&self, name: &str, default: &str) -> Result<Activation, ConfigError> {
        let found = self.optional_text(name)?.unwrap_or_else(|| default.to_owned());
        match found.as_str() {
            "relu" => Ok(Activation::Relu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "silu" | "swish" => Ok(Activation::Silu),
            _ => Err(ConfigError::Unsupported { field: name.to_owned(), feature: format!("the activation `{found}`") }),
        }
    }

    /// Refuses a field that asks for something else than what is implemented.
    pub(super) fn refuse_unless(&self, name: &str, usual: bool, feature: &str) -> Result<(), ConfigError> {
        if self.flag(name, usual)? == usual {
            return Ok(());
        }
        Err(ConfigError::Unsupported { field: name.to_owned(), feature: feature.to_owned() })
    }
}
