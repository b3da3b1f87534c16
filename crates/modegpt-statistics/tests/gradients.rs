//! Laws of gradients as values: they merge in order and come back from bytes unchanged or not at all.

mod random;

use std::collections::BTreeMap;

use modegpt_statistics::{Error, GradientsHeader, LINEARS, Labels, LayerGradients, RowFisher};
use random::Random;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

impl Random {
    /// Of a rotary model with a gated MLP.
    fn gradients(&mut self) -> LayerGradients {
        let widths = LINEARS.map(|name| match name {
            "output" => 8,
            "down" => 11,
            _ => 6,
        });
        LayerGradients {
            n_tokens: 1 + (self.uniform() * 1e6) as u64,
            loss_sum: self.uniform(),
            residual: self.gram(6),
            attention_residual: self.gram(6),
            query_gain: self.grams(4, 2),
            query: self.grams(4, 2),
            key: self.grams(2, 2),
            row_fisher: LINEARS.into_iter().zip(widths).map(|(name, width)| (name, self.vector(width))).collect(),
        }
    }

    /// Of a model without rotation and gate, the squares of weights not asked for.
    fn plain_gradients(&mut self) -> LayerGradients {
        LayerGradients { query_gain: Vec::new(), row_fisher: BTreeMap::new(), ..self.gradients() }
    }
}

fn header(gradients: &LayerGradients) -> GradientsHeader {
    GradientsHeader {
        version: GradientsHeader::VERSION,
        layer: 3,
        model_fingerprint: "model \"å\"".to_owned(),
        token_hash: "tokens".to_owned(),
        n_samples: 4,
        seq_len: 512,
        labels: Labels::Sampled { seed: u64::MAX },
        row_fisher: (!gradients.row_fisher.is_empty()).then_some(RowFisher::PerExample),
    }
}

fn bytes(gradients: &LayerGradients) -> Vec<u8> {
    gradients.to_bytes(&header(gradients))
}

/// Shapes and bytes by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// Bytes with the tensors changed by `edit`; `edit_json` changes the header.
fn edited(gradients: &LayerGradients, edit: impl Fn(&mut Tensors), edit_json: impl Fn(String) -> String) -> Vec<u8> {
    let original = bytes(gradients);
    let (_, metadata) = SafeTensors::read_metadata(&original).expect("a header");
    let metadata = metadata.metadata().clone().expect("metadata");
    let metadata = metadata.into_iter().map(|(key, json)| (key, edit_json(json))).collect();
    let tensors = SafeTensors::deserialize(&original).expect("tensors");
    let mut tensors: BTreeMap<_, _> =
        tensors.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), view.data().to_vec()))).collect();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(Dtype::F64, shape.clone(), bytes).expect("bytes of that shape"))
    });
    safetensors::serialize(views, Some(metadata)).expect("a file")
}

fn refusal(bytes: &[u8]) -> String {
    LayerGradients::from_bytes(bytes).expect_err("refused").to_string()
}

#[test]
fn bytes_round_trip_and_are_deterministic() {
    let mut random = Random(1);
    for gradients in [random.gradients(), random.plain_gradients()] {
        let bytes = bytes(&gradients);
        let (read, read_header) = LayerGradients::from_bytes(&bytes).expect("what was written");
        assert_eq!(read, gradients);
        assert_eq!(read_header, header(&gradients));
        assert_eq!(read.to_bytes(&read_header), bytes);
    }
}

#[test]
fn merging_adds_element_by_element() {
    let mut random = Random(2);
    let (a, b) = (random.gradients(), random.gradients());
    let mut sum = a.clone();
    sum.merge(&b).expect("equal shapes");
    assert_eq!(sum.n_tokens, a.n_tokens + b.n_tokens);
    assert_eq!(sum.loss_sum.to_bits(), (a.loss_sum + b.loss_sum).to_bits());
    assert_eq!(sum.residual.get(4, 2).to_bits(), (a.residual.get(4, 2) + b.residual.get(4, 2)).to_bits());
    assert_eq!(sum.key[1].get(1, 0).to_bits(), (a.key[1].get(1, 0) + b.key[1].get(1, 0)).to_bits());
    let rows = |gradients: &LayerGradients| gradients.row_fisher["down"][7];
    assert_eq!(rows(&sum).to_bits(), (rows(&a) + rows(&b)).to_bits());
    assert!((sum.mean_loss() - sum.loss_sum / sum.n_tokens as f64).abs() < 1e-15);
}

#[test]
fn unequal_shapes_do_not_merge_and_change_nothing() {
    let mut random = Random(3);
    let original = random.gradients();
    let without_gains = LayerGradients { query_gain: Vec::new(), ..random.gradients() };
    let without_rows = LayerGradients { row_fisher: BTreeMap::new(), ..random.gradients() };
    let wider = LayerGradients { residual: random.gram(7), ..random.gradients() };
    let full = LayerGradients { n_tokens: u64::MAX, ..random.gradients() };
    for (other, field) in
        [(without_gains, "`query_gain`"), (without_rows, "`row_fisher`"), (wider, "`residual`"), (full, "`n_tokens`")]
    {
        let mut sum = original.clone();
        let error = sum.merge(&other).expect_err("shapes differ").to_string();
        assert!(error.contains(field), "{error}");
        assert_eq!(sum, original);
    }
}

#[test]
fn hostile_files_are_refused_by_name() {
    let gradients = Random(4).gradients();
    let with = |edit: &dyn Fn(&mut Tensors)| refusal(&edited(&gradients, edit, |json| json));
    let lacking = |name: &'static str| {
        with(&move |tensors| {
            tensors.remove(name);
        })
    };
    assert_eq!(lacking("residual"), "statistics lack the tensor `residual`");
    assert_eq!(lacking("row_fisher.up"), "statistic `row_fisher`: expected all linear maps, found no `up`");
    let unknown = with(&|tensors| {
        tensors.insert("row_fisher.head".to_owned(), (vec![1], vec![0; 8]));
    });
    assert_eq!(unknown, "statistics hold the unknown tensor `row_fisher.head`");
    let replaced = |name: &'static str, values: Vec<f64>, shape: Vec<usize>| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        with(&move |tensors| {
            tensors.insert(name.to_owned(), (shape.clone(), bytes.clone()));
        })
    };
    assert!(replaced("residual", vec![0.0; 20], vec![20]).contains("`residual`: expected the n (n + 1) / 2 elements"));
    assert!(replaced("residual", vec![0.0; 15], vec![15]).contains("`attention_residual`: expected 5, found 6"));
    assert!(replaced("query", vec![0.0; 6], vec![2, 3]).contains("`query_gain`: expected [2, 2], found [2, 2, 2, 2]"));
    assert!(replaced("key", vec![0.0; 9], vec![3, 3]).contains("`key`: expected a number of heads that divides"));
    assert!(replaced("loss_sum", vec![f64::NAN], vec![1]).contains("`loss_sum` holds a value that is not finite"));
    assert!(replaced("row_fisher.up", vec![f64::INFINITY; 6], vec![6]).contains("`up` holds a value that is not"));
    assert!(replaced("row_fisher.up", vec![-1.0; 6], vec![6]).contains("`up`: diagonal element 0 is negative (-1)"));
    assert!(replaced("row_fisher.up", vec![1.0; 5], vec![5]).contains("`up`: expected 6, found 5"));
    assert!(replaced("row_fisher.up", vec![], vec![0]).contains("no empty axis"));
}

#[test]
fn headers_are_checked() {
    let gradients = Random(5).gradients();
    let with = |from: &'static str, to: &'static str| {
        refusal(&edited(
            &gradients,
            |_| {},
            move |json| {
                assert!(json.contains(from), "{json}");
                json.replace(from, to)
            },
        ))
    };
    assert_eq!(with("\"version\":1", "\"version\":2"), "statistics have format version 2, expected 1");
    assert!(with("\"seq_len\"", "\"sequence\"").contains("unknown field `sequence`"));
    assert!(with("\"sampled\"", "\"guessed\"").contains("unknown variant `guessed`"));
    assert!(with("\"per-example\"", "null").contains("`row_fisher` does not say"));
    let whole = bytes(&gradients);
    for end in [0, 7, 8, 100, whole.len() - 1] {
        let refused = LayerGradients::from_bytes(&whole[..end]).expect_err("a piece of a file");
        assert!(matches!(refused, Error::Safetensors(_)), "{refused}");
    }
}
