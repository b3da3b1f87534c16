use super::*;
use crate::testing::report;
use crate::{Ablation, AblationStep, Cell, CompareReport, Curve, PerModule};

/// Tags are nested and closed, attributes quoted, and no place is not a number.
#[track_caller]
fn check(html: &str) {
    for bad in ["NaN", "inf\"", "-inf", "<script", "javascript:", "http://", "https://"] {
        assert!(!html.contains(bad), "{bad} at {:?}", &html[html.find(bad).unwrap_or(0).saturating_sub(80)..][..160]);
    }
    let mut open: Vec<&str> = Vec::new();
    let body = html.strip_prefix("<!doctype html>").expect("a doctype");
    for part in body.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("tags end");
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') && !tag.starts_with("meta") {
            open.push(tag.split([' ', '\n']).next().unwrap_or_default());
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[test]
fn every_number_is_on_the_page() {
    let report = report();
    let html = page(&report);
    check(&html);
    for method in &report.methods {
        for &sparsity in &report.sparsities {
            let spread = report.spread(&method.name, sparsity, |cell| Some(cell.measured.texts[0].perplexity));
            let (mean, deviation) = number::spread(spread.expect("cells"));
            assert!(html.contains(&format!("<b>{mean}</b><span class=\"pm\"> ± {}", deviation.expect("three seeds"))));
            let share = report.share_of_paper(&method.name, sparsity, 0).expect("a share");
            assert!(html.contains(&format!("<td>{}</td>", number::decimals(share, 2))));
        }
    }
    let ablation = report.ablation.as_ref().expect("an ablation");
    let steps = ablation.added.iter().chain(&ablation.left_out);
    for cell in report.cells.iter().chain(steps.flat_map(|step| &step.cells)) {
        let (measured, text, task) = (&cell.measured, &cell.measured.texts[0], &cell.measured.tasks[0]);
        let speed = |speed: Option<f64>| number::decimals(speed.expect("measured"), 0);
        let share = |share: Option<f64>| number::share(share.expect("measured"));
        let row = [
            number::grouped(measured.params),
            number::plain(text.perplexity),
            number::small(text.kl_divergence.expect("measured")),
            share(text.top1_agreement),
            number::share(task.acc),
            share(task.acc_stderr),
            share(task.acc_norm),
            share(task.acc_norm_stderr),
            speed(measured.tokens_per_sec_alone),
            speed(measured.tokens_per_sec),
        ];
        assert!(html.contains(&format!("<td>{}</td>", row.join("</td><td>"))), "{row:?}");
    }
    for hash in [&report.protocol.model.fingerprint, &report.protocol.texts[0].token_hash] {
        assert!(html.contains(hash.as_str()));
    }
    assert_eq!(html.matches("<figure>").count(), 6);
    assert_eq!(page(&report), html);
}

#[test]
fn names_and_samples_cannot_become_markup() {
    let evil = "</style><script>alert(1)</script>\"'&<b x=\u{202e}\u{0}";
    let mut report = report();
    report.protocol.model.name = evil.to_owned();
    report.protocol.model.fingerprint = evil.to_owned();
    report.protocol.command = evil.to_owned();
    report.protocol.prompt = evil.to_owned();
    report.protocol.device = evil.to_owned();
    report.protocol.program = evil.to_owned();
    report.protocol.texts[0].name = evil.to_owned();
    report.protocol.tasks[0].name = evil.to_owned();
    report.protocol.calibration.texts[0] = evil.to_owned();
    report.dense.sample = evil.to_owned();
    report.methods[2] = crate::MethodFacts { name: evil.to_owned(), description: evil.to_owned() };
    report.curves[0].method = evil.to_owned();
    report.curves[0].unit = evil.to_owned();
    for cell in report.cells.iter_mut().filter(|cell| cell.method == "best") {
        cell.method = evil.to_owned();
        cell.measured.sample = evil.to_owned();
    }
    report.ablation.as_mut().expect("an ablation").added[1].label = evil.to_owned();
    let html = page(&report);
    check(&html);
    assert!(!html.contains("alert(1)</script>") && html.contains("&lt;script&gt;alert(1)"));
}

/// A report of a part of the grid only.
fn part(keep: impl Fn(&Cell) -> bool) -> CompareReport {
    let mut report = report();
    report.cells.retain(&keep);
    report.methods.retain(|method| report.cells.iter().any(|cell| cell.method == method.name));
    report.sparsities.retain(|s| report.cells.iter().any(|cell| crate::summary::same(cell.sparsity, *s)));
    report.protocol.calibration.draws.retain(|draw| report.cells.iter().any(|cell| cell.seed == draw.seed));
    report
}

#[test]
fn small_grids_have_pages_too() {
    check(&page(&part(|cell| cell.seed == 1)));
    check(&page(&part(|cell| cell.method == "best")));
    check(&page(&part(|cell| cell.sparsity < 0.25)));
    let one = part(|cell| cell.method == "paper" && cell.sparsity < 0.25 && cell.seed == 0);
    assert_eq!(one.cells.len(), 1);
    let html = page(&one);
    check(&html);
    assert!(!html.contains(" ± ") && !html.contains("standard deviation"));
    let nothing = part(|_| false);
    check(&page(&nothing));
}

#[test]
fn what_was_not_measured_is_left_out() {
    let mut report = report();
    report.ablation = None;
    report.curves.clear();
    report.protocol.tasks.clear();
    report.protocol.reading = None;
    for measured in report.cells.iter_mut().map(|cell| &mut cell.measured).chain([&mut report.dense]) {
        (measured.tokens_per_sec, measured.tokens_per_sec_alone) = (None, None);
        measured.tasks.clear();
        measured.texts[0].kl_divergence = None;
        measured.texts[0].top1_agreement = None;
        measured.sample.clear();
    }
    for layer in report.cells.iter_mut().flat_map(|cell| &mut cell.layers) {
        layer.incurred = None;
    }
    let html = page(&report);
    check(&html);
    assert_eq!(html.matches("<figure>").count(), 3);
    for absent in ["KL, nats", "tokens/s", "piqa", "Samples"] {
        let table = html.split("<details>").next().expect("the page before the details");
        assert!(!table.contains(absent), "{absent}");
    }
}

#[test]
fn numbers_that_cannot_be_drawn_are_not() {
    let mut report = report();
    for (index, cell) in report.cells.iter_mut().enumerate() {
        cell.measured.texts[0].perplexity = [f64::INFINITY, f64::NAN, 0.0, 1e300][index % 4];
        cell.measured.tokens_per_sec = Some(f64::NAN);
        cell.layers.truncate(index % 2);
        for layer in &mut cell.layers {
            layer.removed.mlp = [f64::NAN, -3.0][index % 2];
            layer.incurred = Some(0.0);
        }
    }
    report.curves[0].layers[0].mlp = Curve { widths: vec![4, 8], errors: vec![f64::NAN] };
    report.curves[0].layers[1] = PerModule::default();
    report.curves[0].layers[2].mlp = Curve { widths: vec![0], errors: vec![0.0] };
    let broken = AblationStep { label: String::new(), cells: Vec::new() };
    report.ablation = Some(Ablation { sparsity: 0.3, added: vec![broken], left_out: Vec::new() });
    let html = page(&report);
    for path in html.split(" d=\"").skip(1) {
        let path = path.split('"').next().unwrap_or_default();
        assert!(path.chars().all(|c| c.is_ascii_digit() || "ML .-Z".contains(c)), "{path}");
    }
}

#[test]
fn sentences_count_and_join() {
    assert_eq!((count(1, "draw").as_str(), count(2, "draw").as_str()), ("1 draw", "2 draws"));
    let parts = ["a", "b", "c"].map(str::to_owned);
    assert_eq!(["", "a", "a and b", "a, b and c"], [0, 1, 2, 3].map(|n| join(&parts[..n])).map(|s| s.leak() as &str));
}
