//! Searches over logits of six tokens, step by step, against what the definitions give by hand.

use super::{Hypothesis, Next, Options, Outlook, Search, Special, best};

const BOS: u32 = 5;
const SEP: u32 = 3;

fn search(options: &Options) -> Search {
    Search::new(options, Special { bos: BOS, eos: SEP }, 0)
}

/// Logits over six tokens with these probabilities.
fn logits(probable: &[(u32, f64)]) -> Vec<f64> {
    let mut all = vec![f64::NEG_INFINITY; 6];
    probable.iter().for_each(|(token, p)| all[*token as usize] = p.ln());
    all
}

fn steps(options: &Options, steps: &[&[&[(u32, f64)]]]) -> Vec<Hypothesis> {
    let mut search = search(options);
    for rows in steps {
        search.advance(rows.iter().map(|row| Outlook::All(logits(row))).collect());
    }
    assert!(search.done, "steps are missing");
    search.finish()
}

fn near(found: &Hypothesis, ids: &[u32], score: f64, log_prob: f64) {
    assert_eq!(found.ids, ids);
    assert!((found.score - score).abs() < 1e-12 && (found.log_prob - log_prob).abs() < 1e-12, "{found:?}");
}

#[test]
fn the_best_are_in_order_and_ties_go_to_the_lower_place() {
    assert_eq!(best(&[1.0, 3.0, 3.0, 2.0, f64::NEG_INFINITY], 3), [1, 2, 3]);
    assert_eq!(best(&[f64::NEG_INFINITY, 0.0], 2), [1, 0]);
    assert_eq!(best(&[f64::NAN, 0.0, 1.0], 2), [2, 1]);
}

/// [SEP] is the most probable from the start; [DEC] counts.
#[test]
fn a_caption_ends_at_its_minimum_or_its_maximum() {
    let options =
        |min_length, max_length| Options { num_beams: 1, min_length, max_length, ..Options::default() };
    let row: &[&[(u32, f64)]] = &[&[(SEP, 0.5), (4, 0.3), (1, 0.2)]];
    let ended = steps(&options(3, 6), &[row, row, row]);
    near(&ended[0], &[BOS, 4, 4, SEP], 0.045f64.ln(), 0.045f64.ln());
    let cut = steps(&options(6, 3), &[row, row]);
    near(&cut[0], &[BOS, 4, 4], 0.09f64.ln(), 0.09f64.ln());
}

#[test]
fn repeated_tokens_are_penalised_by_the_sign_of_their_logit() {
    let options = Options { num_beams: 1, min_length: 0, repetition_penalty: 2.0, ..Options::default() };
    let mut search = search(&options);
    let first = vec![Outlook::All(vec![0.0, 0.0, 0.0, 0.0, 1.0, 0.0])];
    assert_eq!(search.advance(first), [Next { parent: 0, token: 4 }]);
    // 4's 3 counts as 1.5, [DEC]'s -1 as -2.
    let second = vec![Outlook::All(vec![2.0, -9.0, -9.0, -9.0, 3.0, -1.0])];
    assert_eq!(search.advance(second), [Next { parent: 0, token: 0 }]);
    // [DEC]'s -1 as -2 again: less than -1.5.
    let third = vec![Outlook::All(vec![-9.0, -1.5, -9.0, -9.0, -9.0, -1.0])];
    assert_eq!(search.advance(third), [Next { parent: 0, token: 1 }]);
}

/// Step by step, with two beams:
///   1  [SEP] 0.5 is kept: ln 0.5 / 1;   rows 4: 0.3, 2: 0.2
///   2  4 [SEP] 0.27 is kept: ln 0.27 / 2;   rows 2 4: 0.12, 2 2: 0.08 - the third and the fourth
///   3  the worst kept, -0.69, is less than what may come, ln 0.12 / 4 = -0.53: on with 2 4 4 and 2 2 2
///   4  both end, better than those that were kept: ln 0.12 / 4 and ln 0.08 / 4 = -0.63
#[test]
fn beams_go_on_while_a_longer_caption_may_be_better() {
    let options =
        Options { num_beams: 2, min_length: 0, max_length: 5, num_return_sequences: 2, ..Options::default() };
    let found = steps(
        &options,
        &[
            &[&[(SEP, 0.5), (4, 0.3), (2, 0.2)]],
            &[&[(SEP, 0.9), (4, 0.1)], &[(4, 0.6), (2, 0.4)]],
            &[&[(4, 1.0)], &[(2, 1.0)]],
            &[&[(SEP, 1.0)], &[(SEP, 1.0)]],
        ],
    );
    near(&found[0], &[BOS, 2, 4, 4, SEP], 0.12f64.ln() / 4.0, 0.12f64.ln());
    near(&found[1], &[BOS, 2, 2, 2, SEP], 0.08f64.ln() / 4.0, 0.08f64.ln());
}

/// [SEP] with 0.3 is the more probable; 4 [SEP] with 0.27 is the better by length: ln 0.27 / 2 = -0.65, ln 0.3 = -1.20. What goes
/// on, 0.6 * 0.1375 and a sixth of it twice, is worse than both: ln 0.00229 / 5 = -1.22.
#[test]
fn captions_stand_in_the_order_of_their_scores() {
    let options =
        Options { num_beams: 2, min_length: 0, max_length: 5, num_return_sequences: 2, ..Options::default() };
    let rest: &[(u32, f64)] = &[(SEP, 0.45), (0, 0.1375), (1, 0.1375), (2, 0.1375), (4, 0.1375)];
    let sixth: &[(u32, f64)] = &[0, 1, 2, SEP, 4, BOS].map(|token| (token, 1.0 / 6.0));
    let found = steps(
        &options,
        &[&[&[(SEP, 0.3), (4, 0.6), (2, 0.1)]], &[rest, sixth], &[sixth, sixth], &[sixth, sixth]],
    );
    near(&found[0], &[BOS, 4, SEP], 0.27f64.ln() / 2.0, 0.27f64.ln());
    near(&found[1], &[BOS, SEP], 0.3f64.ln(), 0.3f64.ln());
}

#[test]
fn all_beams_may_end_at_once_and_as_many_go_on() {
    let mut search = search(&Options { num_beams: 3, min_length: 0, ..Options::default() });
    search.advance(vec![Outlook::All(logits(&[(0, 0.3), (1, 0.3), (2, 0.3), (4, 0.1)]))]);
    let row = || Outlook::All(logits(&[(SEP, 0.6), (4, 0.4)]));
    let next = search.advance(vec![row(), row(), row()]);
    assert_eq!(next, [0, 1, 2].map(|parent| Next { parent, token: 4 }));
    assert_eq!(search.finished.len(), 3);
}

/// A [SEP] behind the first n candidates ends nothing, and a hypothesis as good as the worst kept does not replace it.
#[test]
fn a_hypothesis_is_kept_if_it_is_among_the_first_and_better() {
    let options = Options {
        num_beams: 2,
        min_length: 0,
        length_penalty: 0.0,
        num_return_sequences: 2,
        ..Options::default()
    };
    let half: &[(u32, f64)] = &[(SEP, 0.5), (4, 0.5)];
    let found = steps(
        &options,
        &[&[&[(1, 0.4), (2, 0.4), (SEP, 0.2)]], &[half, half], &[&[(SEP, 1.0)], &[(SEP, 1.0)]]],
    );
    near(&found[0], &[BOS, 1, 4, SEP], 0.2f64.ln(), 0.2f64.ln());
    near(&found[1], &[BOS, 1, SEP], 0.2f64.ln(), 0.2f64.ln());
}

#[test]
fn a_draw_is_by_probability_among_the_tokens_that_are_left() {
    let draw = |change: fn(&mut Options), scores: &[f64], u: f64| {
        let mut options = Options { top_p: 1.0, top_k: 0, ..Options::nucleus() };
        change(&mut options);
        search(&options).draw(scores.to_vec(), u)
    };
    let even = [0.0, 0.0];
    assert_eq!([0.0, 0.25, 0.5, 0.99].map(|u| draw(|_| {}, &even, u)), [0, 0, 1, 1]);
    assert_eq!(draw(|_| {}, &[1000.0, 1000.0], 0.25), 0);
    // Odds of 1 to 3; at half the temperature of 1 to 9.
    let odds = [0.0, 3f64.ln()];
    assert_eq!([0.7, 0.8].map(|u| draw(|_| {}, &odds, u)), [1, 0]);
    assert_eq!([0.85, 0.95].map(|u| draw(|o| o.temperature = 0.5, &odds, u)), [1, 0]);
    // The first alone reaches one half; of equals at the end of the top k, all stay.
    assert_eq!(draw(|o| o.top_p = 0.5, &even, 0.99), 0);
    assert_eq!(draw(|o| o.top_p = 0.51, &even, 0.99), 1);
    // Of 0.5, 0.3 and 0.2 the first two reach 0.6: the first has 5 of 8.
    let three = [0.5, 0.3, 0.2].map(f64::ln);
    assert_eq!([0.62, 0.64].map(|u| draw(|o| o.top_p = 0.6, &three, u)), [0, 1]);
    assert_eq!(draw(|o| o.top_k = 1, &even, 0.99), 1);
    assert_eq!(draw(|o| o.top_k = 1, &odds, 0.99), 1);
}

/// Of two equally probable tokens the draw's number takes the first below one half; every token of every sequence
/// has a number of its own.
#[test]
fn sequences_are_sampled_by_their_own_numbers() {
    let options = Options { num_return_sequences: 3, max_length: 6, min_length: 0, ..Options::nucleus() };
    let even: &[(u32, f64)] = &[(1, 0.5), (2, 0.5)];
    let found = steps(&options, &[&[even], &[even; 3], &[even; 3], &[even; 3], &[even; 3]]);
    let numbers = search(&options).stream;
    for (sequence, hypothesis) in found.iter().enumerate() {
        let token = |place: usize| 1 + u32::from(numbers.uniform((sequence * 6 + place) as u64) >= 0.5);
        let ids: Vec<u32> = std::iter::once(BOS).chain((1..6).map(token)).collect();
        near(hypothesis, &ids, 5.0 * 0.5f64.ln(), 5.0 * 0.5f64.ln());
    }
    assert_eq!(found.len(), 3);
}

#[test]
fn a_search_takes_as_many_beams_as_half_the_vocabulary() {
    let of = |num_beams| Options { num_beams, ..Options::default() };
    assert!(of(3).check(6, 30).is_ok() && of(3).check(5, 30).is_err());
}
