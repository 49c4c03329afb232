//! Lines over a logarithmic grid, as SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 4] = ["#c0392b", "#2980b9", "#27ae60", "#8e44ad"];

/// A line and its name.
pub type Series = (String, Vec<(f64, f64)>);

/// Draws `series`; both axes are logarithmic, values that are not above 0 are left out.
#[must_use]
pub fn svg(title: &str, x_name: &str, y_unit: &str, series: &[Series]) -> String {
    let points: Vec<(f64, f64)> =
        series.iter().flat_map(|(_, points)| points.iter().copied()).filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let low = points.iter().map(of).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(of).fold(0.0, f64::max);
        if points.is_empty() {
            (0.0, 1.0)
        } else {
            (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0))
        }
    };
    let (x_bounds, y_bounds) = (bounds(|point| point.0), bounds(|point| point.1));
    let x_at = |x: f64| LEFT + (x.log10() - x_bounds.0) / (x_bounds.1 - x_bounds.0) * (WIDTH - LEFT - RIGHT);
    let y_at =
        |y: f64| HEIGHT - BOTTOM - (y.log10() - y_bounds.0) / (y_bounds.1 - y_bounds.0) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"28\" font-size=\"16\" text-anchor=\"middle\">{title}</text>\n",
        WIDTH / 2.0
    );
    // Writing to a String does not fail.
    for power in (y_bounds.0 as i32)..=(y_bounds.1 as i32) {
        let (value, y) = (10_f64.powi(power), y_at(10_f64.powi(power)));
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value} {y_unit}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0
        );
    }
    let mut marks: Vec<f64> = points.iter().map(|point| point.0).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    for mark in marks {
        let x = x_at(mark);
        let _ =
            writeln!(out, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>", HEIGHT - BOTTOM + 18.0);
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{x_name}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 12.0
    );
    for ((name, points), colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let line: Vec<String> = points
            .iter()
            .filter(|(x, y)| *x > 0.0 && *y > 0.0)
            .map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            line.join(" ")
        );
        if let Some((x, y)) = points.iter().rev().find(|(x, y)| *x > 0.0 && *y > 0.0) {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                x_at(*x) + 8.0,
                y_at(*y) + 4.0
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::svg;

    #[test]
    fn higher_values_are_drawn_higher_and_nothing_gives_an_empty_plot() {
        let series =
            vec![("a".to_owned(), vec![(100.0, 10.0), (1000.0, 1000.0)]), ("b".to_owned(), vec![(100.0, 0.0)])];
        let drawn = svg("T", "nodes", "ms", &series);
        let line = drawn.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a line");
        let ends: Vec<f64> =
            line.split(' ').map(|point| point.split(',').nth(1).expect("y").parse().expect("a number")).collect();
        assert!(ends[1] < ends[0], "{line}");
        assert!(svg("T", "x", "y", &[]).ends_with("</svg>\n"));
    }
}
