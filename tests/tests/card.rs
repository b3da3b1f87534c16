//! The graphics path against the processor. Needs an adapter; Mesa's software renderers will do.
//!
//! One test, since a process opens a device once: over Vulkan, or over OpenGL with `MODEGPT_GRAPHICS=gl`.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use std::collections::BTreeMap;

use burn::tensor::Device;
use burn::tensor::wgpu::WgpuBackend;
use modegpt::Model;
use modegpt::architecture::WeightProvider;
use modegpt::calibration::{Collect, GramPath, Observing, observe_layer};
use modegpt::gradient::{
    GradientError, GradientOptions, Labels, LayerGradients, RowFisher, Samples, Tape, collect_gradients,
};
use modegpt::linalg::Gram;
use modegpt::model_runtime::{Compute, ResidualStream};
use modegpt_tests::{differences, logits, open, stories};

/// f32 sums in another order; logits are of order 10.
const LOGITS: f32 = 2e-3;
/// Relative to the geometric mean of the diagonal. Activations differ by some 1e-6 before they are multiplied.
const GRAM: f64 = 2e-5;
/// In the Frobenius norm.
const GRADIENT: f64 = 1e-4;

#[test]
fn a_card_computes_what_the_processor_computes() {
    let api = match std::env::var("MODEGPT_GRAPHICS").as_deref() {
        Err(_) | Ok("vulkan") => WgpuBackend::Vulkan,
        Ok("gl") => WgpuBackend::Gl,
        Ok(other) => panic!("MODEGPT_GRAPHICS is `{other}`, expected `vulkan` or `gl`"),
    };
    let (device, setup) = Device::wgpu_options().graphics_api(api).init_with_setup().expect("an adapter");
    println!("adapter: {} over {}", setup.adapter.get_info().name, setup.adapter.get_info().backend);
    let card = Compute::card(device, 128 << 20);
    let host = Compute::host();
    for name in ["opt-tiny-stories", "stories260k"] {
        let model = open(name);
        let ids: Vec<u32> = (5..37).collect();
        let (most, mean) = differences(&logits(&model, &ids, &card), &logits(&model, &ids, &host));
        println!("{name}: logits differ by at most {most:.2e}, {mean:.2e} in the mean");
        assert!(most <= LOGITS, "{name}: logits differ by {most}");
    }

    let model = open("stories260k");
    let calibration = stories(&model, 2, 128);
    let weights: &dyn WeightProvider = &model.checkpoint;
    let seen = |compute: &Compute, path| {
        let mut stream = ResidualStream::in_memory(2, 128, model.config().d_model, 2);
        pollster::block_on(async {
            stream.embed(weights, &calibration.windows.ids, compute).await.expect("embeds");
            let shards = vec![0..1, 1..2];
            observe_layer(
                weights,
                0,
                &mut stream,
                Observing { shards: &shards, path, collect: Collect { logits: true, inputs: true, magnitudes: true } },
                compute,
                |_| {},
            )
            .await
            .expect("observes")
        })
    };
    let on_host = seen(&host, GramPath::Host);
    let on_card = seen(&card, GramPath::DeviceF32);
    let n = on_host.mlp.dim();
    for i in 0..n {
        for j in 0..=i {
            let scale = (on_host.mlp.get(i, i) * on_host.mlp.get(j, j)).sqrt();
            let difference = (on_host.mlp.get(i, j) - on_card.mlp.get(i, j)).abs();
            assert!(difference <= GRAM * scale, "Gram [{i}, {j}] differs by {}", difference / scale);
        }
    }
    assert!((on_host.block_influence() - on_card.block_influence()).abs() < 1e-5);

    for name in ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"] {
        let model = open(name);
        for labels in [Labels::Next, Labels::Sampled { seed: 3 }] {
            let (on_host, on_card) = (gradients(&model, labels, &host), gradients(&model, labels, &card));
            for (what, expected) in &on_host {
                let difference = relative_difference(&on_card[what], expected);
                assert!(difference <= GRADIENT, "{name}, {labels:?}: {what} differs by {difference}");
            }
            println!("{name}, {labels:?}: {} gradients and sums of them agree", on_host.len());
        }
    }
}

/// The gradient of the loss with respect to the embeddings, through every layer, and what every layer sums of gradients.
fn gradients(model: &Model, labels: Labels, compute: &Compute) -> BTreeMap<String, Vec<f64>> {
    let text = stories(model, 2, 24);
    let mut tape = Tape::in_memory(model.config(), 2, 24, 2);
    let samples = Samples { ids: &text.windows.ids, counted: None };
    let options = GradientOptions { labels, row_fisher: Some(RowFisher::PerExample) };
    let mut found = BTreeMap::new();
    let each = |layer: usize, gradients: LayerGradients| {
        gradients.check().expect("sums that belong together");
        let LayerGradients { residual, attention_residual, query_gain, query, key, row_fisher, .. } = gradients;
        let one = |gram: &Gram| gram.packed_lower().to_vec();
        let all = |grams: &[Gram]| grams.iter().flat_map(one).collect::<Vec<_>>();
        let mut keep = |what: &str, values: Vec<f64>| found.insert(format!("layer {layer}, {what}"), values);
        keep("residual", one(&residual));
        keep("attention residual", one(&attention_residual));
        keep("query", all(&query));
        keep("key", all(&key));
        if !query_gain.is_empty() {
            keep("query gain", all(&query_gain));
        }
        for (map, rows) in row_fisher {
            keep(map, rows);
        }
        Ok::<_, GradientError>(())
    };
    let weights = &model.checkpoint;
    pollster::block_on(collect_gradients(weights, &samples, &options, &mut tape, compute, |_, _, _| {}, each))
        .expect("gradients");
    let embeddings = tape.load(0, &(0..2)).expect("the tape");
    found.insert("embeddings".to_owned(), embeddings.into_iter().map(f64::from).collect());
    found
}

fn relative_difference(found: &[f64], expected: &[f64]) -> f64 {
    let size = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    size(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / size(&mut expected.iter().copied())
}
