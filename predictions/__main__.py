from predictions.cli.main import main

main()
