use super::*;

#[test]
fn durations_have_a_unit_that_fits() {
    assert_eq!(duration(0.000_25), "250us");
    assert_eq!(duration(0.012_34), "12.3ms");
    assert_eq!(duration(2.5), "2.50s");
}

#[test]
fn a_row_has_a_column_under_each_heading() {
    let key = Key {
        service: "shop/web".to_owned(),
        ..Key::default()
    };
    let mut signals = Signals::default();
    (signals.responses, signals.failures) = (20.0, 1.0);
    let row = table_row(&key, &signals, 2.0);
    assert_eq!(row.chars().count(), HEAD.chars().count());
    assert!(row.contains(" 10.0 ") && row.contains("95.00%"), "{row}");
}
