//! Laws of statistics: they merge in order, bit for bit, and come back from bytes unchanged or not at all.

mod random;

use modegpt_linalg::Gram;
use modegpt_statistics::{Error, InputGrams, InputMagnitudes, LayerStatistics, StatisticsHeader};
use random::Random;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

const HEADS: (usize, usize) = (4, 2);

impl Random {
    fn statistics(&mut self, d_ff: usize, d_qk: usize, d_v: usize) -> LayerStatistics {
        LayerStatistics {
            n_tokens: 1 + (self.uniform() * 1e6) as u64,
            influence_sum: self.uniform(),
            mlp: self.gram(d_ff),
            mlp_sum: self.vector(d_ff),
            query: self.grams(HEADS.0, d_qk),
            key: self.grams(HEADS.1, d_qk),
            key_sum: vec![self.vector(d_qk), self.vector(d_qk)],
            value: self.grams(HEADS.1, d_v),
            attention_output: self.grams(HEADS.0, d_v),
            inverse_residual_sum: self.uniform(),
            logit: self.grams(HEADS.0, d_qk),
            logit_queries: (self.uniform() * 1e6) as u64,
            inputs: Some(InputGrams { attention: self.gram(7), output: self.gram(HEADS.0 * d_v), mlp: self.gram(7) }),
            magnitudes: Some(InputMagnitudes {
                attention: self.sizes(7),
                output: self.sizes(HEADS.0 * d_v),
                mlp: self.sizes(7),
                hidden: self.sizes(d_ff),
            }),
        }
    }

    fn sizes(&mut self, len: usize) -> Vec<f64> {
        self.vector(len).into_iter().map(f64::abs).collect()
    }
}

fn header() -> StatisticsHeader {
    StatisticsHeader::new(3, "model \"å\"", "tokens", 16, 512)
}

/// Every number of the statistics, in a fixed order, as bits.
fn bits(statistics: &LayerStatistics) -> Vec<u64> {
    let grams =
        [&statistics.query, &statistics.key, &statistics.value, &statistics.attention_output, &statistics.logit];
    let inputs = statistics.inputs.iter().flat_map(|inputs| [&inputs.attention, &inputs.output, &inputs.mlp]);
    let grams = std::iter::once(&statistics.mlp).chain(grams.into_iter().flatten()).chain(inputs);
    let mut bits: Vec<u64> = vec![statistics.n_tokens, statistics.logit_queries];
    bits.extend([statistics.influence_sum, statistics.inverse_residual_sum].map(f64::to_bits));
    bits.extend(grams.flat_map(Gram::packed_lower).map(|value| value.to_bits()));
    let sizes = statistics.magnitudes.iter().flat_map(|InputMagnitudes { attention, output, mlp, hidden }| {
        [attention, output, mlp, hidden].into_iter().flatten()
    });
    let sums = statistics.mlp_sum.iter().chain(statistics.key_sum.iter().flatten()).chain(sizes);
    bits.extend(sums.map(|value| value.to_bits()));
    bits
}

#[test]
fn merging_adds_each_number_in_order() {
    let mut random = Random(1);
    let parts: Vec<LayerStatistics> = (0..5).map(|_| random.statistics(13, 6, 4)).collect();
    let mut merged = parts[0].clone();
    for part in &parts[1..] {
        merged.merge(part).expect("equal shapes");
    }
    let part_bits: Vec<Vec<u64>> = parts.iter().map(bits).collect();
    for (place, found) in bits(&merged).into_iter().enumerate().skip(2) {
        let sum = part_bits.iter().map(|bits| f64::from_bits(bits[place])).reduce(|sum, more| sum + more);
        assert_eq!(found, sum.expect("five parts").to_bits());
    }
    assert_eq!(merged.n_tokens, parts.iter().map(|part| part.n_tokens).sum::<u64>());
    assert_eq!(merged.logit_queries, parts.iter().map(|part| part.logit_queries).sum::<u64>());
    let mean = merged.influence_sum / merged.n_tokens as f64;
    assert_eq!(mean.to_bits(), merged.block_influence().to_bits());
}

#[test]
fn other_shapes_do_not_merge_and_change_nothing() {
    let mut random = Random(2);
    let original = random.statistics(5, 4, 2);
    let check = |other: LayerStatistics, field: &str| {
        let mut ours = original.clone();
        let message = ours.merge(&other).expect_err(field).to_string();
        assert!(message.starts_with(&format!("statistic `{field}`: expected")), "{message}");
        assert_eq!(ours, original);
    };
    check(random.statistics(6, 4, 2), "mlp");
    check(random.statistics(5, 6, 2), "query");
    check(random.statistics(5, 4, 3), "value");
    check(LayerStatistics { attention_output: Vec::new(), ..original.clone() }, "attention_output");
    check(LayerStatistics { logit: Vec::new(), ..original.clone() }, "logit");
    check(LayerStatistics { inputs: None, ..original.clone() }, "attention_input");
    check(LayerStatistics { magnitudes: None, ..original.clone() }, "attention_magnitude");
    check(LayerStatistics { mlp_sum: vec![0.0; 4], ..original.clone() }, "mlp_sum");
    check(LayerStatistics { key_sum: vec![vec![0.0; 4]], ..original.clone() }, "key_sum");

    let mut full = LayerStatistics { n_tokens: u64::MAX, ..original.clone() };
    assert!(matches!(full.merge(&original), Err(Error::TooManyTokens { left: u64::MAX, .. })));
    assert_eq!(full.mlp, original.mlp);
}

#[test]
fn bytes_give_every_bit_back_and_are_the_same_each_time() {
    let mut random = Random(3);
    for (d_ff, d_qk, d_v) in [(1, 1, 1), (13, 6, 4), (129, 16, 3)] {
        let mut statistics = random.statistics(d_ff, d_qk, d_v);
        for with_attention_output in [true, false] {
            if !with_attention_output {
                statistics.attention_output.clear();
                statistics.logit.clear();
                statistics.inputs = None;
                statistics.magnitudes = None;
            }
            let bytes = statistics.to_bytes(&header());
            assert_eq!(statistics.to_bytes(&header()), bytes);
            let (read, read_header) = LayerStatistics::from_bytes(&bytes).expect("just written");
            assert_eq!(bits(&read), bits(&statistics));
            assert_eq!((read, read_header), (statistics.clone(), header()));
        }
    }
}

#[test]
fn only_triangles_are_stored() {
    let statistics = Random(4).statistics(100, 8, 8);
    let heads = (HEADS.0 + HEADS.1) * 36 + HEADS.1 * 8 + (HEADS.1 + HEADS.0) * 36 + HEADS.0 * 36;
    let elements = 2 + 5050 + 100 + heads + 2 * 28 + 32 * 33 / 2 + 2 * 7 + 32 + 100;
    let bytes = statistics.to_bytes(&header()).len();
    assert!((elements * 8..elements * 8 + 2000).contains(&bytes), "{bytes} bytes for {elements} elements");
}

#[test]
fn other_versions_and_headers_are_refused() {
    let statistics = Random(5).statistics(5, 4, 2);
    for version in [2, 4] {
        let other = StatisticsHeader { version, ..header() };
        let error = LayerStatistics::from_bytes(&statistics.to_bytes(&other)).expect_err("another version");
        assert_eq!(error.to_string(), format!("statistics have format version {version}, expected 3"));
    }

    let bytes = statistics.to_bytes(&header());
    let check = |from: &str, to: &str, expected: &str| {
        assert_eq!(from.len(), to.len());
        let place = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect(from);
        let mut bytes = bytes.clone();
        bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
        let message = LayerStatistics::from_bytes(&bytes).expect_err(to).to_string();
        assert!(message.starts_with(expected), "{message}");
    };
    check("modegpt_statistics", "modegpt_statistucs", "statistics header: metadata `modegpt_statistics` is missing");
    check("n_samples", "n_simples", "statistics header: unknown field");
    check("\\\"layer\\\":3", "\\\"layer\\\":-", "statistics header: ");
}

/// Writes a file with one tensor replaced, removed or added.
fn with_tensor(name: &str, dtype: Dtype, shape: Vec<usize>, data: Option<&[u8]>) -> Vec<u8> {
    let bytes = Random(6).statistics(5, 4, 2).to_bytes(&header());
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("just written");
    let file = SafeTensors::deserialize(&bytes).expect("just written");
    let mut tensors: Vec<(String, TensorView<'_>)> = file.tensors();
    tensors.retain(|(other, _)| other != name);
    if let Some(data) = data {
        tensors.push((name.to_owned(), TensorView::new(dtype, shape, data).expect("a fitting shape")));
    }
    safetensors::serialize(tensors, metadata.metadata().clone()).expect("a small file")
}

#[test]
fn missing_unknown_and_misshapen_tensors_are_refused() {
    let check = |name: &str, dtype, shape: &[usize], data: Option<&[u8]>, expected: &str| {
        let bytes = with_tensor(name, dtype, shape.to_vec(), data);
        let message = LayerStatistics::from_bytes(&bytes).expect_err(expected).to_string();
        assert!(message.starts_with(expected), "`{message}` does not start with `{expected}`");
    };
    let zeros = vec![0; 8 * 200];
    for name in ["influence_sum", "mlp", "mlp_sum", "query", "key", "key_sum", "value"] {
        check(name, Dtype::F64, &[], None, &format!("statistics lack the tensor `{name}`"));
        check(
            name,
            Dtype::F32,
            &[5],
            Some(&zeros[..20]),
            &format!("statistic `{name}`: expected elements of type F64"),
        );
        check(name, Dtype::F64, &[0, 1 << 60], Some(&[]), &format!("statistic `{name}`: expected no empty axis"));
        check(name, Dtype::F64, &[2, 3, 1], Some(&zeros[..48]), &format!("statistic `{name}`: expected"));
        check(name, Dtype::F64, &[4, 27], Some(&zeros[..4 * 27 * 8]), &format!("statistic `{name}`: expected"));
    }
    check("mlp", Dtype::F64, &[16], Some(&zeros[..128]), "statistic `mlp`: expected the n (n + 1) / 2 elements");
    check("extra", Dtype::F64, &[1], Some(&zeros[..8]), "statistics hold the unknown tensor `extra`");
    check(
        "attention_output",
        Dtype::F64,
        &[3, 3],
        Some(&zeros[..72]),
        "statistic `attention_output`: expected [2, 2, 2, 2]",
    );
    for (name, expected) in [("attention", 7), ("output", 8), ("mlp", 7), ("hidden", 5)] {
        let name = format!("{name}_magnitude");
        let expected = format!("expected {expected}, found 4");
        let bytes = with_tensor(&name, Dtype::F64, vec![4], Some(&zeros[..32]));
        let message = LayerStatistics::from_bytes(&bytes).expect_err("too short").to_string();
        assert!(message.contains("_magnitude`: ") && message.ends_with(&expected), "{name}: {message}");
    }
    let lacking = with_tensor("mlp_magnitude", Dtype::F64, Vec::new(), None);
    let message = LayerStatistics::from_bytes(&lacking).expect_err("one is missing").to_string();
    assert_eq!(message, "statistics lack the tensor `mlp_magnitude`");
}

#[test]
fn numbers_that_no_calibration_gives_are_refused() {
    let original = Random(7).statistics(5, 4, 2);
    let check = |statistics: LayerStatistics, expected: &str| {
        let error = LayerStatistics::from_bytes(&statistics.to_bytes(&header())).expect_err(expected);
        assert_eq!(error.to_string(), expected);
        let is_negative = matches!(error, Error::NegativeDiagonal { .. } | Error::NegativeMagnitude { .. });
        assert_eq!(statistics.is_finite(), is_negative);
    };
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let gram = |dim: usize| {
            let mut packed = vec![1.0; dim * (dim + 1) / 2];
            packed[1] = bad;
            Gram::from_packed_lower(dim, packed).expect("a whole triangle")
        };
        let message = |field: &str| format!("statistic `{field}` holds a value that is not finite");
        check(LayerStatistics { influence_sum: bad, ..original.clone() }, &message("influence_sum"));
        check(LayerStatistics { mlp: gram(5), ..original.clone() }, &message("mlp"));
        check(LayerStatistics { key: vec![gram(4), gram(4)], ..original.clone() }, &message("key"));
        check(LayerStatistics { mlp_sum: vec![1.0, 1.0, bad, 1.0, 1.0], ..original.clone() }, &message("mlp_sum"));
        check(LayerStatistics { key_sum: vec![vec![1.0; 4], vec![bad; 4]], ..original.clone() }, &message("key_sum"));
    }
    let sizes = |value: f64| {
        let sizes = original.magnitudes.clone().expect("collected");
        Some(InputMagnitudes { hidden: vec![1.0, 1.0, 1.0, value, 1.0], ..sizes })
    };
    let bad = LayerStatistics { magnitudes: sizes(f64::NAN), ..original.clone() };
    check(bad, "statistic `hidden_magnitude` holds a value that is not finite");
    let bad = LayerStatistics { magnitudes: sizes(-0.5), ..original.clone() };
    check(bad, "statistic `hidden_magnitude`: element 3 is negative (-0.5)");
    let negative = Gram::from_packed_lower(2, vec![1.0, 0.0, -0.5]).expect("a whole triangle");
    let value = vec![original.value[0].clone(), negative];
    check(LayerStatistics { value, ..original.clone() }, "statistic `value`: diagonal element 1 is negative (-0.5)");
}

/// Whatever happens to the bytes, reading ends in a value or an error.
#[test]
fn damaged_files_never_panic() {
    let bytes = Random(8).statistics(5, 4, 2).to_bytes(&header());
    for len in 0..bytes.len() {
        LayerStatistics::from_bytes(&bytes[..len]).expect_err("a truncated file");
    }
    let mut random = Random(9);
    let mut n_errors = 0;
    for _ in 0..20_000 {
        let mut bytes = bytes.clone();
        // Most changes within the header, where they can lie about sizes.
        let range = if random.uniform() < 0.9 { 900 } else { bytes.len() };
        for _ in 0..=(random.uniform() * 3.0) as usize {
            let place = (random.uniform() * range as f64) as usize;
            bytes[place] = if random.uniform() < 0.5 {
                b'0' + (random.uniform() * 10.0) as u8
            } else {
                (random.uniform() * 256.0) as u8
            };
        }
        n_errors += usize::from(LayerStatistics::from_bytes(&bytes).is_err());
    }
    assert!(n_errors > 10_000, "only {n_errors} of the damaged files were noticed");
    let huge = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    LayerStatistics::from_bytes(&huge).expect_err("a header longer than the file");
}
